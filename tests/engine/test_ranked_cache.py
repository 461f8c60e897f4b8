import logging
import os
from contextlib import contextmanager
from pathlib import Path

from d2_covid import get_config
from d2_covid.data.slice_datasets import register_slices, train_slices
from d2_covid.data.slice_mapper import SliceMapper
from d2_covid.engine import loader, ranked_cache
from d2_covid.engine.folder_lock import held_in_turn
from d2_covid.engine.inference_model import inference_model
from d2_covid.engine.ranked_cache import cached_task, can_cache, detector_fingerprint, ranked_rows
from d2_covid.engine.tasks import Task

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

SIZE = 64
TINY = (
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "MODEL.CLASSIFIER.TRAIN_NORM", "False"),
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", str(SIZE)),
    *("MODEL.CLASSIFIER.NUM_ROIS", "8", "MODEL.CLASSIFIER.HIDDEN_DIM", "6", "MODEL.CLASSIFIER.NUM_CLASSES", "2"),
)


@pytest.fixture
def slices(tmp_path):
    """Registers 7 training slices and 2 test slices of two classes; gives their folder."""
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for i in range(9):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2}")
    (tmp_path / "train.csv").write_text("\n".join(lines[:8]) + "\n")
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *lines[8:]]) + "\n")
    names = []
    for split in ("train", "test"):
        names.append(f"{tmp_path.name}_{split}")
        register_slices(names[-1], tmp_path / f"{split}.csv", tmp_path, ["no", "yes"])
    yield tmp_path, names
    for name in names:
        DatasetCatalog.remove(name)


@pytest.fixture
def config(slices):
    folder, (train, test) = slices

    def make(*opts):
        sets = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)")
        out = ("OUTPUT_DIR", str(folder / "run"))
        name = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
        return get_config(name, [*TINY, *sets, *out, *map(str, opts)])

    return make


def task():
    return Task(
        check_datasets=lambda cfg: None,
        train_dicts=train_slices,
        mapper=lambda cfg, is_train: SliceMapper(cfg, is_train=is_train),
        evaluator=None,
        epoch_order=None,
    )


def model_of(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.data.normal_(0, 0.3)
    return model.train()


class Counted(torch.nn.Module):
    """Counts how often the detector runs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def state_dict(self):
        return self.model.state_dict()

    def ranked_rows(self, batch):
        self.calls += 1
        return self.model.ranked_rows(batch)


def test_cached_samples_give_the_numbers_of_the_whole_model(config):
    cfg = config("MODEL.CLASSIFIER.TEMPERATURE", 3.0)
    model, plain = model_of(cfg), task()
    cached = cached_task(cfg, plain, model)
    assert model.training, "its mode is given back"
    model.eval()
    evaluated = inference_model(cfg, model)
    for d in [*train_slices(cfg), *DatasetCatalog.get(cfg.DATASETS.TEST[0])]:
        whole = plain.mapper(cfg, False)(d)
        from_cache = cached.mapper(cfg, True)(d)
        assert "image" not in from_cache and from_cache["image_class"] == d["image_class"]
        with torch.no_grad():
            (expected,), (got,), (trained,) = evaluated([whole]), model([from_cache]), model([whole])
        assert torch.equal(expected["ranked"].rows, from_cache["ranked_rows"])
        assert torch.equal(expected["image_logits"], got["image_logits"])
        assert torch.equal(expected["image_scores"], got["image_scores"])
        assert torch.allclose(got["image_scores"], (got["image_logits"] / 3).softmax(-1))
        assert torch.allclose(trained["ranked"].rows, from_cache["ranked_rows"], rtol=1e-4, atol=1e-5)
        assert torch.allclose(trained["image_logits"], got["image_logits"], rtol=1e-4, atol=1e-5)


def test_training_from_the_cache_is_training_with_the_detector(config):
    cfg = config()
    samples = {}
    model = model_of(cfg)
    samples["cached"] = [cached_task(cfg, task(), model).mapper(cfg, True)(d) for d in train_slices(cfg)]
    samples["whole"] = [task().mapper(cfg, True)(d) for d in train_slices(cfg)]
    losses = {}
    for name, batch in samples.items():
        model = model_of(cfg)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses[name] = []
        for _ in range(3):
            loss = model(batch)["loss_image"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    assert losses["cached"] == pytest.approx(losses["whole"], abs=1e-4)
    assert losses["cached"][-1] < losses["cached"][0]


def test_the_detector_runs_once(config):
    cfg = config()
    model = Counted(model_of(cfg))
    cached_task(cfg, task(), model)
    assert model.calls == 9
    cached_task(cfg, task(), model)
    assert model.calls == 9


def test_an_interrupted_run_goes_on(config, monkeypatch):
    cfg = config()
    monkeypatch.setattr(ranked_cache, "SHARD", 2)
    model = Counted(model_of(cfg))
    compute = ranked_cache._compute

    def stop_at_third(*args):
        if model.calls >= 4:
            raise KeyboardInterrupt
        compute(*args)

    monkeypatch.setattr(ranked_cache, "_compute", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        cached_task(cfg, task(), model)
    monkeypatch.setattr(ranked_cache, "_compute", compute)
    cached_task(cfg, task(), model)
    assert model.calls == 9


def test_its_reading_processes_begin_as_those_of_training_do(config, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "_begin_worker", lambda number: (tmp_path / f"began_{number}").touch())
    cfg = config("DATALOADER.NUM_WORKERS", 1)
    cached_task(cfg, task(), Counted(model_of(cfg)))
    assert (tmp_path / "began_0").exists()


def test_a_changed_slice_is_computed_again(config, slices, monkeypatch):
    cfg = config()
    monkeypatch.setattr(ranked_cache, "SHARD", 1)
    model = Counted(model_of(cfg))
    dicts, mapper = train_slices(cfg), SliceMapper(cfg, is_train=False)
    before = ranked_rows(cfg, model, dicts, mapper)
    Image.fromarray(np.full((SIZE, SIZE), 200, dtype=np.uint8)).save(slices[0] / "3.png")
    after = ranked_rows(cfg, model, dicts, mapper)
    assert model.calls == 8
    assert [i for i in range(7) if not torch.equal(before[i], after[i])] == [3]


def test_a_damaged_file_is_computed_again(config, caplog):
    cfg = config()
    model = Counted(model_of(cfg))
    dicts, mapper = train_slices(cfg), SliceMapper(cfg, is_train=False)
    before = ranked_rows(cfg, model, dicts, mapper)
    folder = Path(cfg.OUTPUT_DIR) / "ranked_cache"
    (path,) = folder.glob("*.pth")
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        after = ranked_rows(cfg, model, dicts, mapper)
    assert torch.equal(before, after)
    assert "computing it again" in caplog.text
    assert len(list(folder.glob("*.pth"))) == 1


@pytest.mark.parametrize(
    "opts, same",
    [
        ((), True),
        (("MODEL.CLASSIFIER.HIDDEN_DIM", 9), True),
        (("MODEL.CLASSIFIER.LOSS", "ce"), True),
        (("MODEL.MASK_ON", True), True),
        (("SOLVER.BASE_LR", 0.1), True),
        (("MODEL.CLASSIFIER.FEATURES", "boxes"), False),
        (("MODEL.CLASSIFIER.DROP_EMPTY", False), False),
        (("MODEL.CLASSIFIER.PADDING", "sampled"), False),
        (("MODEL.CLASSIFIER.NMS_THRESH", 0.5), False),
        (("MODEL.CLASSIFIER.SCORE_THRESH", 0.5), False),
        (("MODEL.CLASSIFIER.PADDING_SEED", 5), False),
        (("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid"), False),
        (("MODEL.RPN.POST_NMS_TOPK_TEST", 30), False),
        (("TEST.DTYPE", "bfloat16"), False),
        (("TEST.FAST", False), False),
        (("INPUT.MIN_SIZE_TEST", 80), False),
    ],
)
def test_entries_are_shared_only_where_nothing_that_matters_differs(config, opts, same):
    base, other = config(), config(*opts)
    model = model_of(base)
    changed = model_of(other)
    detector = {n: t for n, t in model.state_dict().items() if "image_classifier" not in n}
    changed.load_state_dict(detector, strict=False)
    assert (detector_fingerprint(base, model) == detector_fingerprint(other, changed)) == same


def test_weights_of_the_detector_matter_and_those_of_s_do_not(config):
    cfg = config()
    model = model_of(cfg)
    before = detector_fingerprint(cfg, model)
    model.roi_heads.image_classifier.fc1.weight.data += 1
    assert detector_fingerprint(cfg, model) == before
    model.backbone.bottom_up.stem.conv1.norm.running_mean += 1
    assert detector_fingerprint(cfg, model) != before


@pytest.mark.parametrize(
    "opts, expected",
    [
        ((), True),
        (("MODEL.CLASSIFIER.TRAIN_NORM", True), False),
        (("INPUT.AUGMENTATION.HORIZONTAL_FLIP", 0.5), False),
        (("INPUT.MIN_SIZE_TRAIN", "(64, 80)"), False),
        (("INPUT.MIN_SIZE_TEST", 80), False),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), False),
    ],
)
def test_only_constant_batches_are_cached(config, opts, expected):
    assert can_cache(config(*opts), task()) == expected


def test_runs_may_share_a_folder(config, tmp_path):
    cfg = config("MODEL.CLASSIFIER.CACHE_DIR", tmp_path / "shared")
    model = Counted(model_of(cfg))
    cached_task(cfg, task(), model)
    cached_task(config("MODEL.CLASSIFIER.CACHE_DIR", tmp_path / "shared", "OUTPUT_DIR", tmp_path / "b"), task(), model)
    assert model.calls == 9


def test_what_another_run_computed_meanwhile_is_taken(config, monkeypatch):
    cfg = config()
    first, second = Counted(model_of(cfg)), Counted(model_of(cfg))

    @contextmanager
    def after_another(lock, say):
        monkeypatch.setattr(ranked_cache, "held_in_turn", held_in_turn)
        cached_task(cfg, task(), first)
        with held_in_turn(lock, say):
            yield

    monkeypatch.setattr(ranked_cache, "held_in_turn", after_another)
    cached_task(cfg, task(), second)
    assert (first.calls, second.calls) == (9, 0)


def test_runs_of_different_detectors_do_not_wait_for_each_other(config, monkeypatch):
    locks = []

    @contextmanager
    def noted(lock, say):
        locks.append(lock)
        yield

    monkeypatch.setattr(ranked_cache, "held_in_turn", noted)
    for opts in ((), ("MODEL.RPN.NMS_THRESH", 0.31)):
        cfg = config(*opts)
        cached_task(cfg, task(), model_of(cfg))
    assert len(set(locks)) == 2


def test_a_slice_written_again_in_as_many_bytes_is_computed_again(config, slices, monkeypatch):
    cfg = config()
    monkeypatch.setattr(ranked_cache, "SHARD", 1)
    model = Counted(model_of(cfg))
    dicts, mapper = train_slices(cfg), SliceMapper(cfg, is_train=False)
    ranked_rows(cfg, model, dicts, mapper)
    os.utime(slices[0] / "3.png", ns=(10**18, 10**18))
    ranked_rows(cfg, model, dicts, mapper)
    assert model.calls == 8
