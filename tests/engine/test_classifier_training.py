"""From a segmentation checkpoint to a trained classifier: what is loaded, refused, cached, resumed."""

import json
import logging
import shutil
from pathlib import Path

from d2_covid import get_config
from d2_covid.data.datasets import data_fingerprint
from d2_covid.data.slice_datasets import register_slices
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.engine.run import run_evaluation
from d2_covid.engine.trainer import Trainer
from d2_covid.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

SIZE = 64
SEGMENTATION = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
CLASSIFICATION = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
TINY = (
    *("MODEL.DEVICE", "cpu", "SEED", "1", "DATALOADER.NUM_WORKERS", "0", "TEST.BOOTSTRAP", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", str(SIZE), "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("MODEL.CLASSIFIER.NUM_ROIS", "8", "MODEL.CLASSIFIER.HIDDEN_DIM", "6", "MODEL.CLASSIFIER.NUM_CLASSES", "2"),
    *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.01"),
    *("SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2"),
)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    lines = ["file,label,patient_id"]
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{i}")
    (folder / "train.csv").write_text("\n".join(lines[:6]) + "\n")
    (folder / "test.csv").write_text("\n".join([lines[0], *lines[6:]]) + "\n")
    for split in ("train", "test"):
        register_slices(f"classifier_{split}", folder / f"{split}.csv", folder, ["no", "yes"])
    yield folder
    for split in ("train", "test"):
        DatasetCatalog.remove(f"classifier_{split}")


@pytest.fixture
def config(slices, tmp_path):
    def make(*opts, file=CLASSIFICATION):
        sets = ("DATASETS.TRAIN", "('classifier_train',)", "DATASETS.TEST", "('classifier_test',)")
        return get_config(file, [*TINY, *sets, "OUTPUT_DIR", str(tmp_path / "run"), *map(str, opts)])

    return make


@pytest.fixture
def detector(config, tmp_path) -> Path:
    """A segmentation checkpoint, as training writes it, whose detections differ from each other."""
    return save_detector(config(file=SEGMENTATION), tmp_path / "detector.pth")


def save_detector(cfg, path: Path, drop: str | None = None, facts: bool = True, carried: bool = False) -> Path:
    torch.manual_seed(3)
    model = build_model(cfg)
    predictor = model.roi_heads.box_predictor
    for layer in (predictor.cls_score, predictor.bbox_pred):
        layer.weight.data.normal_(0, 0.3)
    state = {n: t for n, t in model.state_dict().items() if drop is None or not n.startswith(drop)}
    told = model_facts(cfg) | (carried_facts(cfg) if carried else {})
    write_checkpoint(path, {"model": state, "d2_covid": told} if facts else {"model": state})
    return path


def weights(trainer) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in trainer.weights()["model"].items()}


@pytest.mark.parametrize("train_norm", [True, False])
def test_a_segmentation_checkpoint_becomes_an_evaluated_classifier(config, detector, train_norm, tmp_path):
    cfg = config("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", train_norm)
    trainer = Trainer(cfg)
    before = weights(trainer)
    start = torch.load(detector, weights_only=True)["model"]
    for name, tensor in before.items():
        assert "image_classifier" in name or torch.equal(tensor, start[name]), "everything but S comes from it"
    numbers = trainer.train()
    assert {"image/accuracy", "image/balanced_accuracy", "val/total_loss"} <= numbers.keys()
    changed = {n for n, t in weights(trainer).items() if not torch.equal(t, before[n])}
    assert any("image_classifier" in n for n in changed)
    assert not any("running" in n for n in changed)
    assert any("conv1.norm" in n for n in changed) == train_norm
    assert (tmp_path / "run" / "ranked_cache").is_dir() != train_norm
    # Without intervals (TEST.BOOTSTRAP is 0 here), there is a page all the same.
    assert (tmp_path / "run" / "inference" / "classifier_test" / "classification.html").is_file()

    # The checkpoint is that of the whole model: the detector runs again, and the numbers are the same.
    cfg = config("MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluation")
    again = run_evaluation(cfg)
    for name in ("image/accuracy", "image/brier"):
        assert again[name] == pytest.approx(numbers[name], abs=1e-6)


def test_classes_in_another_order_are_not_evaluated(config, slices, detector, tmp_path):
    Trainer(config("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False)).train()
    register_slices("classifier_reversed", slices / "test.csv", slices, ["yes", "no"])
    cfg = config("MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth", "DATASETS.TEST", "('classifier_reversed',)")
    try:
        with pytest.raises(UserError, match="classifier_reversed has the image classes yes, no, .* trained on no, yes"):
            run_evaluation(cfg)
    finally:
        DatasetCatalog.remove("classifier_reversed")


def test_a_run_is_not_resumed_with_its_classes_in_another_order(slices, detector, tmp_path):
    """Its slices, labelled by number, would be the same, and the fingerprint of the data with them."""
    opts = (*TINY, "MODEL.WEIGHTS", str(detector), "MODEL.CLASSIFIER.TRAIN_NORM", "False")
    opts += ("DATASETS.TRAIN", "('order_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "run"))
    try:
        register_slices("order_train", slices / "train.csv", slices, ["no", "yes"])
        Trainer(get_config(CLASSIFICATION, [*opts, "SOLVER.MAX_ITER", "2"])).train()
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove("order_train")
        register_slices("order_train", slices / "train.csv", slices, ["yes", "no"])
        with pytest.raises(UserError, match="order_train has the image classes yes, no, .* trained on no, yes"):
            Trainer(get_config(CLASSIFICATION, opts), resume=True)
    finally:
        DatasetCatalog.remove("order_train")


def test_a_run_is_not_resumed_with_another_sampling(config, detector):
    opts = ("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False, "DATASETS.TEST", "()")
    Trainer(config(*opts, "SOLVER.MAX_ITER", 2)).train()
    told = "began with DATALOADER.SLICE_SAMPLING as_is, and with balanced its iterations are other slices"
    with pytest.raises(UserError, match=told):
        Trainer(config(*opts, "DATALOADER.SLICE_SAMPLING", "balanced"), resume=True)


def test_a_run_is_resumed_where_its_slices_lie_elsewhere(slices, detector, tmp_path):
    """As data that is copied to a node's own disk for each job."""
    opts = (*TINY, "MODEL.WEIGHTS", str(detector), "MODEL.CLASSIFIER.TRAIN_NORM", "False")
    opts += ("DATASETS.TRAIN", "('moved_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "run"))
    for number, folder in enumerate((slices, tmp_path / "node")):
        if number:
            shutil.copytree(slices, folder)
        register_slices("moved_train", folder / "train.csv", folder, ["no", "yes"])
        try:
            Trainer(
                get_config(CLASSIFICATION, [*opts, "SOLVER.MAX_ITER", str(2 + number)]), resume=bool(number)
            ).train()
        finally:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.remove("moved_train")


def test_a_record_of_an_earlier_version_is_resumed(config, detector, tmp_path):
    cfg = config("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False)
    Trainer(cfg).train()
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["data"]["train"][0]["fingerprint"] = data_fingerprint(cfg.DATASETS.TRAIN, by_path=True)
    assert json.loads(path.read_text()) != record
    path.write_text(json.dumps(record))
    Trainer(cfg, resume=True)
    record["data"]["train"][0]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="training data changed"):
        Trainer(cfg, resume=True)


@pytest.mark.parametrize("train_norm", [True, False])
def test_a_resumed_run_reaches_the_same_weights(config, detector, train_norm, tmp_path):
    opts = ("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", train_norm)
    whole = Trainer(config(*opts, "OUTPUT_DIR", tmp_path / "whole"))
    whole.train()
    stopped = Trainer(config(*opts))
    run_step = stopped.run_step

    def stop_at_three():
        if stopped.iter == 3:
            raise RuntimeError("it ends here")  # other than when it is asked to: saves nothing
        run_step()

    stopped.run_step = stop_at_three
    with pytest.raises(RuntimeError, match="it ends here"):
        stopped.train()
    resumed = Trainer(config(*opts), resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_cached_and_uncached_training_reach_the_same_weights(config, detector, monkeypatch, tmp_path):
    opts = ("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False, "SOLVER.IMS_PER_BATCH", 1)
    cached = Trainer(config(*opts))
    assert cached.task.in_memory
    cached.train()
    monkeypatch.setattr("d2_covid.engine.ranked_cache.can_cache", lambda cfg, task: False)
    uncached = Trainer(config(*opts, "OUTPUT_DIR", tmp_path / "uncached"))
    assert not uncached.task.in_memory
    uncached.train()
    expected = weights(uncached)
    for name, tensor in weights(cached).items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_classifier_checkpoint_carries_its_facts_and_loads_whole(config, detector, tmp_path):
    Trainer(config("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False)).train()
    final = tmp_path / "run" / "model_final.pth"
    facts = torch.load(final, weights_only=True)["d2_covid"]
    expected = {"num_rois": 8, "hidden_dim": 6, "features": "deltas", "num_image_classes": 2}
    assert {name: facts[name] for name in expected} == expected
    trainer = Trainer(config("MODEL.WEIGHTS", final, "OUTPUT_DIR", tmp_path / "second"))
    saved = torch.load(final, weights_only=True)["model"]
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize(
    "opts, values",
    [
        (("MODEL.CLASSIFIER.NUM_ROIS", 16), ("NUM_ROIS 8", "16")),
        (("MODEL.CLASSIFIER.FEATURES", "boxes"), ("FEATURES deltas", "boxes")),
        (("MODEL.CLASSIFIER.HIDDEN_DIM", 12), ("HIDDEN_DIM 6", "12")),
    ],
)
def test_a_classifier_of_another_shape_is_refused_with_both_values(config, detector, opts, values, tmp_path):
    cfg = config("MODEL.WEIGHTS", detector)
    torch.manual_seed(0)
    path = tmp_path / "classifier.pth"
    write_checkpoint(path, {"model": build_model(cfg).state_dict(), "d2_covid": model_facts(cfg, classifier=True)})
    with pytest.raises(UserError) as error:
        Trainer(config(*opts, "MODEL.WEIGHTS", path))
    assert all(value in str(error.value) for value in values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "opts, file, values",
    [
        (("DATASETS.MASK_TYPE", "ggo"), SEGMENTATION, ("merge", "ggo")),
        (("MODEL.ROI_HEADS.NUM_CLASSES", 2), SEGMENTATION, ("1", "2")),
        ((), SEGMENTATION.replace("T2", "T1"), ("T1", "T2")),
    ],
)
def test_a_detector_of_another_kind_is_refused_with_both_values(config, opts, file, values, tmp_path):
    path = save_detector(config(*opts, file=file), tmp_path / "other.pth")
    with pytest.raises(UserError) as error:
        Trainer(config("MODEL.WEIGHTS", path))
    assert all(value in str(error.value) for value in values)


@pytest.mark.parametrize("facts", [True, False])
def test_a_detector_with_a_part_missing_is_refused_and_the_part_named(config, facts, tmp_path):
    path = save_detector(config(file=SEGMENTATION), tmp_path / "part.pth", "proposal_generator.", facts)
    with pytest.raises(UserError, match="lacks .* proposal_generator"):
        Trainer(config("MODEL.WEIGHTS", path))


@pytest.mark.parametrize("source", ["", "torchvision://resnet18"])
def test_training_without_a_segmentation_model_needs_a_flag(config, source):
    with pytest.raises(UserError, match="MODEL.CLASSIFIER.ALLOW_SCRATCH"):
        Trainer(config("MODEL.WEIGHTS", source))
    if not source:
        Trainer(config("MODEL.CLASSIFIER.ALLOW_SCRATCH", True))


def test_masks_are_loaded_where_they_ride_along(config, detector):
    trainer = Trainer(config("MODEL.WEIGHTS", detector, "MODEL.MASK_ON", True))
    start = torch.load(detector, weights_only=True)["model"]
    masks = {n: t for n, t in weights(trainer).items() if "mask_head" in n}
    assert masks and all(torch.equal(t, start[n]) for n, t in masks.items())


def test_a_detector_of_another_config_is_told_of(config, tmp_path, caplog):
    path = save_detector(config(file=SEGMENTATION), tmp_path / "other.pth", carried=True)
    Trainer(config("MODEL.WEIGHTS", path))
    assert "the config differs" not in caplog.text
    Trainer(config("MODEL.WEIGHTS", path, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"))
    assert "POOLER_TYPE ROIAlign, theirs is ROIAlignV2" in caplog.text


def test_patients_of_no_slice_are_refused_before_the_training(config, detector):
    with pytest.raises(UserError, match="TEST.PATIENT_K must be 1 or more slices, not 0"):
        Trainer(config("MODEL.WEIGHTS", detector, "TEST.PATIENT_K", 0))
    Trainer(config("MODEL.WEIGHTS", detector, "TEST.PATIENT_K", 0, "DATASETS.TEST", "()"))


def epochs_of_trainer(cfg, monkeypatch) -> list[list[int]]:
    """Indices of the first four epochs, in the order that a trainer of ``cfg`` asks its loader for."""
    orders = []

    def train_batches(dicts, mapper, order, **options):
        orders.append(order)
        return iter(())

    with monkeypatch.context() as patch:
        patch.setattr("d2_covid.engine.trainer.train_batches", train_batches)
        Trainer(cfg)
    (order,) = orders
    return [[int(index) for index in order(epoch)] for epoch in range(4)]


def test_balanced_sampling_reaches_the_trainer(config, detector, slices, monkeypatch):
    lines = ["file,label,patient_id", *(f"{i}.png,{int(i > 5)},{i}" for i in range(8))]
    (slices / "unbalanced.csv").write_text("\n".join(lines) + "\n")
    register_slices("classifier_unbalanced", slices / "unbalanced.csv", slices, ["no", "yes"])
    opts = ("MODEL.WEIGHTS", detector, "DATASETS.TRAIN", "('classifier_unbalanced',)", "DATASETS.TEST", "()")
    try:
        classes = [d["image_class"] for d in DatasetCatalog.get("classifier_unbalanced")]
        balanced, again, other, as_is = (
            epochs_of_trainer(config(*opts, "DATALOADER.SLICE_SAMPLING", sampling, "SEED", seed), monkeypatch)
            for sampling, seed in (("balanced", 1), ("balanced", 1), ("balanced", 2), ("as_is", 1))
        )
    finally:
        DatasetCatalog.remove("classifier_unbalanced")
    assert [sum(classes[i] for i in epoch) for epoch in balanced] == [4] * 4
    assert [sorted(epoch) for epoch in as_is] == [list(range(8))] * 4 and sum(classes) == 2
    assert balanced == again != other
    assert balanced[0] != balanced[1] and as_is[0] != as_is[1]


def test_model_and_data_of_different_kinds_are_refused(config, detector, lesion_sets):
    with pytest.raises(UserError, match="holds classes of slices, and the model, a GeneralizedRCNN, finds lesions"):
        Trainer(config(file=SEGMENTATION))
    lesions = ("DATASETS.TRAIN", "('engine_train',)", "DATASETS.TEST", "('engine_test',)")
    with pytest.raises(UserError, match="engine_train holds lesions, and a CovidCTMaskNet learns classes"):
        Trainer(config("MODEL.WEIGHTS", detector, *lesions))


def test_augmentation_turns_the_cache_off_and_says_so(config, detector, caplog):
    with caplog.at_level(logging.INFO):
        trainer = Trainer(
            config(
                *("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False),
                *("INPUT.AUGMENTATION.HORIZONTAL_FLIP", 0.5),
            )
        )
    assert not trainer.task.in_memory
    assert "computed anew for every pass" in caplog.text


def test_the_record_tells_of_the_classifier(config, detector, tmp_path):
    Trainer(config("MODEL.WEIGHTS", detector, "MODEL.CLASSIFIER.TRAIN_NORM", False)).train()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["MODEL"]["CLASSIFIER"]["TRAIN_NORM"] is False
    assert record["data"]["train"][0]["slices"] == 5
