"""torchvision's weights under Detectron2's names, and the account of what was loaded."""

import hashlib
import urllib.error

from d2_covid import get_config
from d2_covid.engine.checkpoint import model_facts, read_checkpoint
from d2_covid.engine.weights import (
    BACKBONE_PREFIX,
    backbone_checkpoint,
    convert_torchvision_resnet,
    load_state,
    load_weights,
    stages_of,
    verify_checksum,
)
from d2_covid.errors import UserError

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model

STAGES = {"full": ["res2", "res3", "res4", "res5"], "T1": ["res2", "res3", "res4"], "T2": ["res2", "res3"]}


def random_torchvision(name: str) -> torch.nn.Module:
    """A torchvision ResNet in which every tensor is random, BatchNorm statistics included."""
    torch.manual_seed(1)
    model = torchvision.models.get_model(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


def torchvision_features(model: torch.nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    features = {}
    for number in range(1, 5):
        x = getattr(model, f"layer{number}")(x)
        features[f"res{number + 1}"] = x
    return features


def backbone_config(depth: int, truncation: str):
    last = STAGES[truncation][-1]
    opts = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.FPN.IN_FEATURES", f"['{last}']", "MODEL.DEVICE", "cpu"]
    if depth == 50:
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "256"]
    return get_config("Base-LesionMaskRCNN.yaml", [*opts, "MODEL.RESNETS.OUT_FEATURES", f"['{last}']"])


@pytest.mark.parametrize("truncation", STAGES)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_converted_weights_give_equal_features_layer_by_layer(name, truncation):
    source = random_torchvision(name)
    bottom_up = build_backbone(backbone_config(int(name[6:]), truncation)).bottom_up.eval()
    report = load_state(bottom_up, convert_torchvision_resnet(source.state_dict()), name)
    assert report.new == []
    assert stages_of(dict.fromkeys(report.loaded)) == tuple(STAGES[truncation])
    assert stages_of(dict.fromkeys(report.skipped)) == tuple(s for s in STAGES["full"] if s not in STAGES[truncation])

    bottom_up._out_features = STAGES[truncation]  # every stage, where the model itself asks for the last alone
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = bottom_up(image), torchvision_features(source, image)
    for stage in STAGES[truncation]:
        assert torch.equal(ours[stage], theirs[stage]), stage


def test_pixel_normalisation_is_that_of_torchvision():
    cfg = get_config("Base-LesionMaskRCNN.yaml")
    preset = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"].transforms()
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * m for m in preset.mean])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * s for s in preset.std])


def test_stages_of_finds_what_is_truncated():
    full = random_torchvision("resnet18").state_dict()
    assert stages_of(full) == ("res2", "res3", "res4", "res5")
    prefixed = backbone_checkpoint(full, "resnet18", source="random")["model"]
    assert stages_of(prefixed) == ("res2", "res3", "res4", "res5")
    assert stages_of({n: t for n, t in full.items() if not n.startswith("layer4")}) == ("res2", "res3", "res4")
    assert stages_of({"conv1.weight": full["conv1.weight"]}) == ()


def test_only_resnets_are_converted():
    with pytest.raises(UserError, match="features.0.weight is not a tensor of a torchvision ResNet"):
        convert_torchvision_resnet({"features.0.weight": torch.zeros(1)})


# --- MODEL.WEIGHTS "torchvision://..." -------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The download cache, with no network behind it; holds a file named as torchvision's ResNet18."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def put_resnet18(hub, monkeypatch):
    """A random ResNet18 in the cache, under the checksum that it has; returns the file."""
    file = hub / "new.pth"
    torch.save(random_torchvision("resnet18").state_dict(), file)
    named = file.rename(hub / f"resnet18-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    weights = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"]
    monkeypatch.setattr(type(weights), "url", f"https://example.org/{named.name}", raising=False)
    return named


def tiny_model(*opts):
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ["MODEL.DEVICE", "cpu", *map(str, opts)])
    return build_model(cfg), cfg


def test_offline_without_the_file(hub):
    model, cfg = tiny_model("MODEL.WEIGHTS", "torchvision://resnet18")
    with pytest.raises(UserError) as caught:
        load_weights(model, cfg)
    message = str(caught.value)
    assert "no route to host" in message and str(hub / "resnet18-") in message and 'MODEL.WEIGHTS ""' in message


def test_cached_file_is_loaded_and_later_stages_are_dropped(hub, monkeypatch):
    put_resnet18(hub, monkeypatch)
    model, cfg = tiny_model("MODEL.WEIGHTS", "torchvision://resnet18")
    head = model.roi_heads.box_predictor.cls_score.weight.clone()
    report = load_weights(model, cfg)
    source = random_torchvision("resnet18")
    assert torch.equal(model.backbone.bottom_up.res3[0].conv1.weight, source.layer2[0].conv1.weight)
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, head)
    assert stages_of(dict.fromkeys(report.skipped)) == ("res4", "res5")
    assert "loaded" in report.summary() and "not used" in report.summary() and "new" in report.summary()


def test_damaged_file_in_the_cache(hub, monkeypatch):
    path = put_resnet18(hub, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    model, cfg = tiny_model("MODEL.WEIGHTS", "torchvision://resnet18")
    with pytest.raises(UserError, match="is damaged: its SHA-256 begins"):
        load_weights(model, cfg)


@pytest.mark.parametrize(
    ("source", "message"),
    [("torchvision://vgg16", "there are resnet18, resnet34, resnet50"), ("torchvision://resnet34", "DEPTH 34")],
)
def test_wrong_imagenet_model(source, message, hub, monkeypatch):
    weights = torchvision.models.get_model_weights("resnet34")["IMAGENET1K_V1"]
    state = torchvision.models.get_model("resnet34").state_dict()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: state if url == weights.url else None)
    model, cfg = tiny_model("MODEL.WEIGHTS", source)
    with pytest.raises(UserError, match=message):
        load_weights(model, cfg)


def test_checksum_is_read_from_the_name(tmp_path):
    good = tmp_path / f"r-{hashlib.sha256(b'x').hexdigest()[:8]}.pth"
    good.write_bytes(b"x")
    assert verify_checksum(good)
    (tmp_path / "mine.pth").write_bytes(b"x")
    assert not verify_checksum(tmp_path / "mine.pth")


# --- MODEL.WEIGHTS of a checkpoint -----------------------------------------------------------------------------------


def checkpoint_of(model, cfg, path, drop=(), **changes):
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(tuple(drop) or "\0")}
    torch.save({"model": state, "d2_covid": model_facts(cfg) | changes}, path)
    return path


def test_nothing_to_load():
    model, cfg = tiny_model("MODEL.WEIGHTS", "")
    assert load_weights(model, cfg) is None


def test_whole_model(tmp_path):
    model, cfg = tiny_model()
    cfg.MODEL.WEIGHTS = str(checkpoint_of(model, cfg, tmp_path / "m.pth"))
    other, _ = tiny_model()
    assert not torch.equal(other.roi_heads.box_head.fc1.weight, model.roi_heads.box_head.fc1.weight)
    report = load_weights(other, cfg, complete=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert (report.skipped, report.new) == ([], [])
    assert set(report.loaded) == set(model.state_dict())


def test_part_of_a_model(tmp_path):
    model, cfg = tiny_model()
    cfg.MODEL.WEIGHTS = str(checkpoint_of(model, cfg, tmp_path / "m.pth", drop=["roi_heads.mask_head"]))
    with pytest.raises(UserError, match=r"lacks 6 tensors of the model: roi_heads.mask_head.\w+ \(2\)"):
        load_weights(model, cfg)
    report = load_weights(model, cfg, may_be_new=("roi_heads.mask_head.",))
    assert len(report.new) == 6
    with pytest.raises(UserError, match="lacks 6 tensors"):
        load_weights(model, cfg, complete=True, may_be_new=("roi_heads.mask_head.",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"mask_type": "both", "lesion_classes": ["GGO", "consolidation"]},
            ["'both' (2 classes)", "'merge' (1 class)"],
        ),
        ({"num_classes": 2}, ["NUM_CLASSES 2", "says 1"]),
        ({"depth": 34}, ["DEPTH 34", "says 18"]),
        ({"truncation": "T1"}, ["truncation T1", "truncation T2"]),
        ({"num_rois": 256}, ["NUM_ROIS 256", "says 128"]),
        ({"format": 99, "d2_covid": "7.0"}, ["d2_covid 7.0", "newer"]),
    ],
)
def test_another_model_is_refused_in_one_sentence(changes, words, tmp_path):
    model, cfg = tiny_model()
    cfg.MODEL.WEIGHTS = str(checkpoint_of(model, cfg, tmp_path / "m.pth", **changes))
    with pytest.raises(UserError) as caught:
        load_weights(model, cfg)
    message = str(caught.value)
    assert "\n" not in message and cfg.MODEL.WEIGHTS in message
    assert all(word in message for word in words), message


def test_shapes_that_differ_are_listed(tmp_path):
    model, cfg = tiny_model()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    wider, cfg = tiny_model("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.WEIGHTS", tmp_path / "bare.pth")
    before = wider.backbone.bottom_up.stem.conv1.weight.clone()
    with pytest.raises(UserError, match=r"roi_heads.box_head.fc1.bias \(128,\) instead of \(16,\)"):
        load_weights(wider, cfg)
    assert torch.equal(wider.backbone.bottom_up.stem.conv1.weight, before)


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_heads_without_their_backbone_are_warned_of(tmp_path, caplog):
    """A state dict without facts, of a T2, in a T1: res4 and the level of the FPN that reads it are not there."""
    torch.save(tiny_model()[0].state_dict(), tmp_path / "bare.pth")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "bare.pth")]
    cfg = get_config("segmentation/mask_rcnn_R_18_T1_FPN.yaml", opts)
    load_weights(build_model(cfg), cfg)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(cfg.MODEL.WEIGHTS) and "\n" not in warning
    assert "backbone.bottom_up.res4 (" in warning and "backbone.fpn_lateral4" in warning

    model, cfg = tiny_model("MODEL.WEIGHTS", tmp_path / "bare.pth")
    caplog.clear()
    load_weights(model, cfg)
    assert warnings_of(caplog) == []


def test_weights_of_something_else_entirely(tmp_path):
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "x.pth")
    model, cfg = tiny_model("MODEL.WEIGHTS", tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"holds no tensor of this model; it has encoder.weight \(1\)"):
        load_weights(model, cfg)


def test_converted_file_loads_as_backbone(tmp_path, caplog):
    source = random_torchvision("resnet18")
    checkpoint = backbone_checkpoint(source.state_dict(), "resnet18", source="random")
    torch.save(checkpoint, tmp_path / "r18.pth")
    model, cfg = tiny_model("MODEL.WEIGHTS", tmp_path / "r18.pth")
    report = load_weights(model, cfg)
    assert all(name.startswith(BACKBONE_PREFIX) for name in report.loaded)
    assert "backbone.fpn_lateral3.weight" in report.new and warnings_of(caplog) == []
    assert read_checkpoint(tmp_path / "r18.pth")["d2_covid"]["kind"] == "backbone"


# --- tools/convert_weights.py ----------------------------------------------------------------------------------------


@pytest.fixture
def convert(load_tool):
    return load_tool("convert_weights")


def test_command_converts_a_file(convert, tmp_path, capsys):
    source = random_torchvision("resnet18")
    torch.save(source.state_dict(), tmp_path / "in.pth")
    assert convert.main(["resnet18", "--input", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")]) == 0
    shown = capsys.readouterr().out
    assert "120 tensors, 11.19 million numbers, stages res2, res3, res4, res5" in shown and "no checksum" in shown
    model = read_checkpoint(tmp_path / "out.pth")["model"]
    assert torch.equal(model["backbone.bottom_up.res5.1.conv2.weight"], source.layer4[1].conv2.weight)
    assert torch.equal(
        model["backbone.bottom_up.res3.0.shortcut.norm.running_var"], source.layer2[0].downsample[1].running_var
    )


def test_command_verifies_the_checksum(convert, tmp_path, capsys):
    torch.save(random_torchvision("resnet18").state_dict(), tmp_path / "in-00000000.pth")
    with pytest.raises(UserError, match="SHA-256 begins .*, not 00000000"):
        convert.main(["resnet18", "--input", str(tmp_path / "in-00000000.pth"), "--output", str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()


def test_command_refuses_another_depth(convert, tmp_path):
    torch.save(random_torchvision("resnet18").state_dict(), tmp_path / "in.pth")
    with pytest.raises(UserError, match="is not a torchvision resnet34: it has no layer1.2.conv1.weight"):
        convert.main(["resnet34", "--input", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")])


def test_command_offline(convert, hub, tmp_path):
    with pytest.raises(UserError, match="Without a network, put"):
        convert.main(["resnet50", "--output", str(tmp_path / "out.pth")])


def test_anchors_of_another_recipe_are_told_of():
    """Whoever goes on from a model that ships, or from a phantom one, and takes the paper's config."""
    leaf, small = "mask_rcnn_R_18_T2_FPN.yaml", ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
    tuned = build_model(get_config(f"segmentation/tuned/{leaf}", small)).state_dict()
    paper = build_model(get_config(f"segmentation/{leaf}", small))
    with pytest.raises(UserError, match="it has 15 anchors a place, and the config 30: .* those in tuned/ 15"):
        load_state(paper, tuned, "tuned.pth")
    wider = paper.state_dict()
    wider["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(9)
    with pytest.raises(UserError, match=r"instead of \(2,\)\.$"):
        load_state(paper, wider, "wider.pth")
