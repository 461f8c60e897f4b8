"""What is said before a training starts."""

import logging

from d2_covid.engine.trainer import Trainer

import pytest


@pytest.mark.parametrize(
    "opts, told",
    [
        (("SOLVER.IMS_PER_BATCH", 1), True),
        (("SOLVER.IMS_PER_BATCH", 2), False),
        (("SOLVER.IMS_PER_BATCH", 1, "TEST.NORM_STATISTICS", "slice"), False),
        (("SOLVER.IMS_PER_BATCH", 1, "MODEL.RESNETS.NORM", "FrozenBN"), False),
    ],
)
def test_batch_norm_that_trains_on_one_slice_at_a_time_is_warned_of(opts, told, tiny, caplog):
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*opts))
    assert ("TEST.NORM_STATISTICS slice evaluates and predicts as it trained" in caplog.text) == told
