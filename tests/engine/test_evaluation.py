"""Evaluation during training, the validation loss, the best checkpoint, and the metrics."""

import json
import math

from d2_covid.data.datasets import register_lesions
from d2_covid.engine import trainer as trainer_module
from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.engine.evaluation import flat_numbers, loss_mode, validation_losses
from d2_covid.engine.hooks import drop_metrics_from, is_due, last_iteration
from d2_covid.engine.run import run_evaluation
from d2_covid.engine.seeding import derive_seed
from d2_covid.engine.tasks import task_of
from d2_covid.engine.trainer import Trainer
from d2_covid.errors import UserError

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn


@pytest.fixture
def model(tiny):
    model = build_model(tiny()).train()
    model.backbone.bottom_up.stem.conv1.weight.requires_grad = False
    model.roi_heads.eval()
    return model


def snapshot(model: nn.Module):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    return tensors, modes, grads


def test_validation_loss_changes_nothing(tiny, model):
    """The paper's program let BatchNorm absorb the test images."""
    cfg = tiny()
    tensors, modes, grads = snapshot(model)
    random = torch.get_rng_state()
    with EventStorage() as storage:
        losses = validation_losses(cfg, task_of(cfg), model, seed=3)
        assert not storage.histories()
        assert get_event_storage() is storage
    after = snapshot(model)
    assert all(torch.equal(tensors[name], after[0][name]) for name in tensors)
    assert (modes, grads) == after[1:]
    assert torch.equal(torch.get_rng_state(), random)
    assert losses == validation_losses(cfg, task_of(cfg), model, seed=3)
    assert losses["val/total_loss"] == pytest.approx(sum(v for n, v in losses.items() if n != "val/total_loss"))
    assert {"val/loss_mask", "val/loss_rpn_cls", "val/loss_box_reg"} <= losses.keys()


def test_validation_loss_normalises_with_the_running_statistics(tiny, model):
    cfg = tiny()
    before = validation_losses(cfg, task_of(cfg), model, seed=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(4.0)
    assert validation_losses(cfg, task_of(cfg), model, seed=3) != before


def test_validation_loss_normalises_with_a_slices_own_statistics_where_asked(tiny, model):
    cfg = tiny("TEST.NORM_STATISTICS", "slice")
    before = validation_losses(cfg, task_of(cfg), model, seed=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(4.0)
    assert validation_losses(cfg, task_of(cfg), model, seed=3) == before


def test_validation_losses_are_means_over_the_slices_of_all_sets(tiny, model):
    names = ("engine_test", "engine_train")  # three slices, and six
    cfg = tiny("DATASETS.TEST", names)
    found = validation_losses(cfg, task_of(cfg), model, seed=3)
    mapper, losses = task_of(cfg).mapper(cfg, False), []
    with loss_mode(model), torch.no_grad(), EventStorage():
        for name in names:
            for index, item in enumerate(DatasetCatalog.get(name)):
                sample = mapper(dict(item))
                torch.manual_seed(derive_seed(3, "validation", index))
                losses.append({loss: float(value) for loss, value in model([sample]).items()})
    assert len(losses) == 9 and len({one["loss_mask"] for one in losses}) > 2
    expected = {f"val/{loss}": sum(one[loss] for one in losses) / 9 for loss in losses[0]}
    assert found == pytest.approx({"val/total_loss": sum(expected.values()), **expected})


def test_loss_mode_gives_every_module_its_mode_back_after_an_error():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1).eval(), nn.Dropout())
    model[2].eval()
    with pytest.raises(RuntimeError), loss_mode(model):
        assert [m.training for m in model] == [True, False, True]
        raise RuntimeError
    assert [m.training for m in model] == [True, False, False]


def test_flat_numbers_leaves_out_what_is_no_number():
    assert flat_numbers({"segm": {"AP": 1, "note": "none"}, "n": 2.5}) == {"segm/AP": 1.0, "n": 2.5}


@pytest.mark.parametrize(
    ("period", "due"), [(0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6]), (100, [6]), (1, [1, 2, 3, 4, 5, 6])]
)
def test_is_due(period, due):
    assert [done for done in range(1, 7) if is_due(period, done, 6)] == due


def run_with_scores(tiny, monkeypatch, scores, **options):
    """A run whose evaluations give these scores."""
    values = iter(scores)
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_, **__: {"segm": {"AP50": next(values)}})
    return Trainer(tiny("TEST.VALIDATION_LOSS", False), **options).train()


@pytest.mark.parametrize(
    ("scores", "best"),
    [([10.0, 30.0, 20.0], (30.0, 3)), ([10.0, 10.0, 10.0], (10.0, 1)), ([math.nan, 5.0, math.nan], (5.0, 3))],
)
def test_best_checkpoint(scores, best, tiny, tmp_path, monkeypatch):
    result = run_with_scores(tiny, monkeypatch, scores)
    saved = read_checkpoint(tmp_path / "run" / "model_best.pth")["d2_covid"]["best"]
    assert (saved["value"], saved["iteration"]) == best
    assert result["segm/AP50"] == scores[-1] or math.isnan(scores[-1])
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert [line.get("segm/AP50") for line in lines] == [None if math.isnan(s) else s for s in scores]


def test_no_best_checkpoint_without_a_number(tiny, tmp_path, monkeypatch, caplog):
    run_with_scores(tiny, monkeypatch, [math.nan] * 3)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[-1] == "no best checkpoint after iteration 5: segm/AP50 is undefined there"
    assert not (tmp_path / "run" / "model_best.pth").exists()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"] == {"segm/AP50": None}


def test_best_metric_that_no_evaluation_gives(tiny, tmp_path, caplog):
    Trainer(tiny("TEST.BEST_METRIC", "segm/AP51", "SOLVER.MAX_ITER", 1)).train()
    assert "TEST.BEST_METRIC segm/AP51 is not among" in caplog.text
    assert not (tmp_path / "run" / "model_best.pth").exists()


@pytest.mark.parametrize(("given", "of"), [("segm/AP50", "engine"), ("second_test/segm/AP50", "second")])
def test_the_best_checkpoint_of_two_test_sets(given, of, tiny, lesion_sets, tmp_path, monkeypatch):
    """A metric that names no set is the first one's."""
    register_lesions("second_test", lesion_sets["test"])
    results = {name: {"segm": {"AP50": float(len(name))}} for name in ("engine_test", "second_test")}
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_, **__: results)
    opts = ("DATASETS.TEST", tuple(results), "TEST.VALIDATION_LOSS", False, "SOLVER.MAX_ITER", 1)
    Trainer(tiny(*opts, "TEST.BEST_METRIC", given)).train()
    best = read_checkpoint(tmp_path / "run" / "model_best.pth")["d2_covid"]["best"]
    assert best == {"metric": f"{of}_test/segm/AP50", "value": len(f"{of}_test"), "iteration": 0}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.DTYPE", "float16"), "float16 .* is for a GPU"),
        (("TEST.DTYPE", "bfloat16", "TEST.FAST", False), "needs TEST.FAST True"),
    ],
)
def test_an_evaluation_that_can_only_fail_is_refused_before_the_training(opts, message, tiny):
    with pytest.raises(UserError, match=message):
        Trainer(tiny(*opts))
    Trainer(tiny(*opts, "DATASETS.TEST", "()"))
    with pytest.raises(UserError, match=message):  # and before the weights are looked for
        run_evaluation(tiny(*opts, "MODEL.WEIGHTS", "gone.pth"))


def test_an_evaluation_with_another_config_than_the_weights_is_told_of(tiny, tmp_path, reference, caplog):
    cfg = tiny("MODEL.WEIGHTS", reference / "model_final.pth")
    run_evaluation(cfg.clone())
    assert "the config differs" not in caplog.text
    cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.ANCHOR_GENERATOR.SIZES = 128, [[2, 4]]
    run_evaluation(cfg)
    told = [r.message for r in caplog.records if "the config differs from the weights' own" in r.message]
    assert len(told) == 2 and "INPUT.MIN_SIZE_TEST 128, theirs is 64" in told[1]


def test_a_lesion_training_goes_on_at_another_size_without_a_warning(tiny, reference, caplog):
    Trainer(tiny("MODEL.WEIGHTS", reference / "model_final.pth", "INPUT.MIN_SIZE_TEST", 128))
    assert "the config differs" not in caplog.text


def test_failing_evaluation_costs_no_training(tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the evaluation broke"), monkeypatch.context() as patch:

        def broken(*_, **__):
            raise UserError("the evaluation broke")

        patch.setattr(trainer_module, "evaluate", broken)
        Trainer(tiny("SOLVER.MAX_ITER", 2)).train()
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed: the evaluation broke"
    assert "segm/AP50" in Trainer(tiny("SOLVER.MAX_ITER", 2), resume=True).train()


def test_metrics_before_an_iteration_are_kept(tmp_path):
    path = tmp_path / "metrics.json"
    assert last_iteration(path) == -1
    drop_metrics_from(path, 3)
    assert not path.exists()
    path.write_text('{"iteration": 1}\n{"iteration": 3}\n{"iteration": 2, "a": 1}\n{"iter')
    assert last_iteration(path) == 3
    drop_metrics_from(path, 3)
    assert path.read_text() == '{"iteration": 1}\n{"iteration": 2, "a": 1}\n'


def test_progress_bar_shows_loss_and_goes_to_the_end(tiny, capsys):
    Trainer(tiny("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 3), progress=True).train()
    shown = capsys.readouterr().err
    assert "training: 100%" in shown and "3/3" in shown and "loss " in shown


def test_tensorboard_is_written(tiny, tmp_path):
    Trainer(tiny("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1)).train()
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_diverging_training_stops_with_the_files_of_the_batch(tiny, lesion_sets, tmp_path):
    cfg = tiny("SOLVER.BASE_LR", 1e30, "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 100)
    with pytest.raises(UserError) as caught:
        Trainer(cfg).train()
    message = str(caught.value)
    assert "no longer finite at iteration" in message and message.count(".png") == 2 and "\n" not in message
    assert not list((tmp_path / "run").glob("*.pth"))


def test_loss_that_is_not_finite_is_named(tiny, monkeypatch):
    trainer = Trainer(tiny("DATASETS.TEST", "()"))
    monkeypatch.setattr(trainer, "model", lambda batch: {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(math.nan)})
    with pytest.raises(UserError, match=r"iteration 0.*loss_a 1, loss_b nan"):
        trainer.train()


def test_metrics_hold_losses_rate_and_time(tiny, tmp_path):
    Trainer(tiny("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2)).train()
    line = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"total_loss", "loss_mask", "lr", "iteration", "data_time"} <= line.keys()
