"""What the zoo's trainings run on."""

from dataclasses import dataclass, field

from ..engine.cores import usable_cores


@dataclass(frozen=True)
class Machine:
    """How rows are run here; nothing of it decides what comes out, apart from rounding.

    Attributes:
        jobs: trainings at a time.
        workers: processes that read data, for each training.
        device: ``MODEL.DEVICE``; "" leaves it to what the machine has.
        time_limit: seconds for all of it; None: no limit.
        cores: processor cores to share.
    """

    jobs: int = 1
    workers: int = 2
    device: str = ""
    time_limit: float | None = None
    cores: int = field(default_factory=usable_cores)

    @property
    def threads(self) -> int:
        """Computing threads of each training."""
        return max(1, self.cores // max(1, self.jobs))

    def options(self) -> list[str]:
        """Overrides for a training."""
        device = ["MODEL.DEVICE", self.device] if self.device else []
        # Checkpoints on the way are there to resume from: one is enough, and many rows fill a disk.
        # Nor does an evaluation on the way; the record has the last one.
        quiet = ["SOLVER.CHECKPOINT_KEEP", "1", "TEST.VALIDATION_LOSS", "False", "TEST.EVAL_EPOCHS", "0.0"]
        return ["DATALOADER.NUM_WORKERS", str(self.workers), *quiet, *device]
