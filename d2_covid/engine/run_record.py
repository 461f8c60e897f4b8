"""``run.json``: what ran, on what, with what, and what came out."""

import json
import math
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Sequence

import detectron2
import numpy
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from .. import __version__
from ..data.datasets import data_fingerprint
from ..data.files import write_json
from ..errors import UserError

SCHEMA_VERSION = 1

# Where a run may differ from its first session without becoming another run.
_FREE_KEYS = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "VIS_PERIOD", "TEST.")


# What the order of samples follows from, besides the data: an iteration of one run is another slice of the other.
_ORDER_KEYS = ("SOLVER.IMS_PER_BATCH", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "DATALOADER.SLICE_SAMPLING")


class RunRecord:
    """The record of a run, which may take several sessions: the first, and one more for each time it is resumed.

    Written, whole, when a session starts and when it ends; a session that says ``running`` and isn't was killed.

    Args:
        cfg: the config, its schedule resolved.
        seed: the seed in use.
        command: the command line.
        first_iteration: where this session starts.
        resumed_from: name of the checkpoint; None for a fresh start.
    """

    FILE = "run.json"

    def __init__(
        self, cfg: CfgNode, seed: int, *, command: Sequence[str], first_iteration: int, resumed_from: str | None
    ) -> None:
        self.path = Path(cfg.OUTPUT_DIR) / self.FILE
        earlier = read_record(cfg.OUTPUT_DIR) if resumed_from else None
        self._started = time.monotonic()
        self._session = {
            "status": "running",
            "command": list(command),
            "started": now(),
            "resumed_from": resumed_from,
            "first_iteration": first_iteration,
            "host": platform.node(),
            "process": os.getpid(),
        }
        self._record = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "seed": seed,
            "versions": versions(),
            "device": device_name(cfg.MODEL.DEVICE),
            "threads": torch.get_num_threads(),
            "data": describe_data(cfg),
            "config": plain_config(cfg),
            "max_iter": cfg.SOLVER.MAX_ITER,
            "result": (earlier or {}).get("result"),
            "sessions": [*(earlier or {}).get("sessions", []), self._session],
        }

    def write(self) -> None:
        """Write it as it stands."""
        write_json(self.path, self._record)

    def finish(self, status: str, iterations: int, result: dict[str, float] | None = None) -> None:
        """Close this session, and write.

        Args:
            status: "finished", "interrupted", or "failed: " and why.
            iterations: how many the run has done, all sessions together.
            result: the numbers of the last evaluation.
        """
        self._session |= {"status": status, "ended": now(), "last_iteration": iterations - 1}
        self._session["seconds"] = round(time.monotonic() - self._started, 3)
        self._record |= {"status": status, "iterations": iterations}
        if result:
            self._record["result"] = finite(result)
        self.write()


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The run record in ``folder``; None where there is none.

    Raises:
        UserError: the file is not one.
    """
    path = Path(folder) / RunRecord.FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["seed"], record["config"], record["data"]["train"]  # noqa: B018  (what resuming reads)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run record; move it away, or use another OUTPUT_DIR.") from error
    return record


def describe_data(cfg: CfgNode) -> dict[str, Any]:
    """Names, sizes and fingerprints of the datasets of ``cfg``."""
    return {
        split: [
            {"name": name, "slices": len(DatasetCatalog.get(name)), "fingerprint": data_fingerprint([name])}
            for name in names
        ]
        for split, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST))
    }


def check_same_run(record: dict[str, Any], cfg: CfgNode) -> list[str]:
    """Compare a run's record with the config that is to resume it.

    Returns:
        The keys that differ, with both values, such as ``"SOLVER.BASE_LR 1e-05 -> 0.0001"``.

    Raises:
        UserError: the training data, the slices of an update or their order changed since the run began, so that it
            can't be taken up where it was.
    """
    before = [dataset["fingerprint"] for dataset in record["data"]["train"]]
    after = [dataset["fingerprint"] for dataset in describe_data(cfg)["train"]]
    otherwise = (
        "to go on from its weights, give another OUTPUT_DIR and its last checkpoint as MODEL.WEIGHTS, without --resume."
    )
    if before != after and before != [data_fingerprint([name], by_path=True) for name in cfg.DATASETS.TRAIN]:
        raise UserError(
            f"The training data changed since the run in {cfg.OUTPUT_DIR} began, so it can't be resumed; {otherwise}"
        )
    old, new = _flat(record["config"]), _flat(plain_config(cfg))
    for key in _ORDER_KEYS:
        if key in old and old[key] != new[key]:
            raise UserError(
                f"The run in {cfg.OUTPUT_DIR} began with {key} {old[key]}, and with {new[key]} its iterations are "
                f"other slices, so it can't be resumed; leave the key as it was or, {otherwise}"
            )
    return [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)
    ]


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "d2_covid": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "numpy": numpy.__version__,
    }


def device_name(device: str) -> str:
    """The device in words."""
    if device.startswith("cuda"):
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def plain_config(cfg: CfgNode) -> dict[str, Any]:
    """The config as nested dicts of what json knows."""
    return {key: plain_config(value) if isinstance(value, CfgNode) else _plain(value) for key, value in cfg.items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """The numbers as json can hold them: None for NaN and infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def now() -> str:
    """This moment, UTC, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
