#!/usr/bin/env python
"""Trains mayaku's nearest Mask R-CNN from scratch on a prepared set, for so many minutes, and prints its mask AP.

    pip install mayaku
    python tools/train_mayaku.py --name radiopaedia --minutes 6 --device cuda --output output/mayaku
    python tools/train_mayaku.py --like docs/zoo/tuned-R18-T1-scratch-s1.json --output output/mayaku

The set is one that datasets/prepare_cncb.py made: annotations/merge_train.json is trained on, merge_val.json evaluated.
The config gives anchors, thresholds and heads, the size of slices, batch, learning rate and weight decay; the optimiser
is AdamW. --like takes config, set, device and threads from a training of the model zoo that had this optimiser too, and
as many seconds as its steps took.

A few steps are trained first, to see how long they take; then, from new random weights, as many slices as fit into the
minutes: the whole set so many times, and a part of it, drawn at random, once more. On a CPU mayaku computes in float32,
whatever is asked of it; on a GPU in bfloat16.

Exit status: 0 done, 2 bad input.
"""

import argparse
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from d2_covid import get_config
from d2_covid.benchmark.mayaku_peer import count_mayaku_parameters, mayaku_config, mayaku_version
from d2_covid.cli import run_command
from d2_covid.data.coco_json import load_lesion_json, read_coco
from d2_covid.data.datasets import prepared_json
from d2_covid.data.files import write_json
from d2_covid.engine.run_record import device_name, versions
from d2_covid.errors import UserError
from d2_covid.inference.model_source import choose_device
from d2_covid.zoo.data import described
from d2_covid.zoo.grids import FOLDER
from d2_covid.zoo.records import FINISHED, read_record_file

import torch
from detectron2.config import CfgNode

PROBE_STEPS = 2, 24
"""Steps of the two trainings that show how long a slice takes, and how long start-up."""
CONFIG = "segmentation/tuned/mask_rcnn_R_18_T1_FPN.yaml"


@dataclass(frozen=True)
class LesionSet:
    """A split's json, the folder of its images, and how many slices it names."""

    annotations: Path
    images: Path
    slices: int


@dataclass(frozen=True)
class Task:
    """What to train on, how, for how long (seconds, or epochs), and the record that says so, if one does."""

    name: str
    cfg: CfgNode
    seconds: float | None
    epochs: int | None
    record: dict[str, Any] | None = None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="name of the prepared set")
    parser.add_argument("--config-file", metavar="FILE", help=f"our config whose shape and recipe it takes [{CONFIG}]")
    parser.add_argument("--size", type=int, help="side of the input in pixels [the config's]")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of slices, with --minutes (default 1)")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training")
    length.add_argument("--epochs", type=int, help="of training, instead")
    length.add_argument("--like", type=Path, metavar="RECORD", help="record of a lesion training of the model zoo")
    parser.add_argument("--batch", type=int, help="slices to a step [the config's]")
    parser.add_argument("--lr", type=float, help="learning rate of AdamW [the config's]")
    parser.add_argument("--workers", type=int, default=2, help="processes that read (default 2)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto [auto; with --like: the record's]")
    parser.add_argument("--output", type=Path, required=True, help="folder for its files and result.json")
    return parser


def task_of(args: argparse.Namespace) -> Task:
    """What the command line asks for.

    Raises:
        UserError: --like with what it decides itself, or a record of something else; no --name; a number of 0 or less.
    """
    for option in ("minutes", "epochs", "size", "batch", "lr"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            raise UserError(f"--{option} is {value:g}; it takes more than 0.")
    name, config, opts, seconds, record = args.name, args.config_file or CONFIG, [], None, None
    if args.like:
        decided = ("name", "config_file", "size", "batch", "lr")
        if given := [f"--{one.replace('_', '-')}" for one in decided if getattr(args, one) is not None]:
            raise UserError(f"--like takes set and recipe from the record; leave out {', '.join(given)}.")
        record = read_record_file(args.like)
        if record["kind"] != "lesion" or record["status"] != FINISHED:
            raise UserError(f"{args.like} is no finished training of a lesion model.")
        name = record["data"]["train"][0]["name"].removesuffix("_merge_train")
        config, opts, seconds = record["config"].removeprefix("configs/"), record["opts"], record["step_seconds"]
    elif not name:
        raise UserError("Name the prepared set: --name.")
    cfg = get_config(config, opts)
    if record and cfg.SOLVER.OPTIMIZER != "AdamW":
        raise UserError(f"{args.like} was trained with {cfg.SOLVER.OPTIMIZER}, and mayaku's training is with AdamW.")
    changes = {
        "INPUT.MIN_SIZE_TEST": args.size,
        "INPUT.MAX_SIZE_TEST": None if args.size is None else 2 * args.size,
        "SOLVER.IMS_PER_BATCH": args.batch,
        "SOLVER.BASE_LR": args.lr,
    }
    cfg.merge_from_list([item for key, value in changes.items() if value is not None for item in (key, value)])
    return Task(name, cfg, seconds if args.minutes is None else args.minutes * 60, args.epochs, record)


def device_of(args: argparse.Namespace, record: Mapping[str, Any] | None) -> str:
    """``cpu`` or ``cuda``; with a record the one that it is of, and as many threads.

    Raises:
        UserError: the device is not there, or device or threads are asked to be others than the record's.
    """
    if record is None:
        return "cuda" if choose_device(args.device).startswith("cuda") else "cpu"
    own = "cpu" if record["device"].startswith("cpu") else "cuda"
    if args.device != "auto" and args.device.partition(":")[0] != own:
        raise UserError(f"{args.like} was trained on {record['device']}; leave out --device {args.device}.")
    threads, asked = record.get("threads"), os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        if asked not in (None, str(threads)):
            raise UserError(f"{args.like} was trained with OMP_NUM_THREADS {threads}, and it is {asked}; set it so.")
        torch.set_num_threads(threads)
    choose_device(own)
    return own


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    if mayaku_version() is None:
        raise UserError("mayaku is not installed; run: pip install mayaku")
    task = task_of(args)
    device = device_of(args, task.record)
    whole, val = (_set(task.name, split) for split in ("train", "val"))
    if task.record:
        _check_same_slices(task.record, {"train": whole, "test": val})
    epochs, train = task.epochs, whole
    if epochs is None:
        probes = []
        for steps in PROBE_STEPS:
            slices = steps * task.cfg.SOLVER.IMS_PER_BATCH
            part = _drawn(whole, slices, args.seed, args.output / f"probe_{steps}.json")
            _, took = _train(task.cfg, part, args.workers, device, 1, args.output / f"probe_{steps}")
            probes.append((part.slices, took))
        each, start = slice_and_start(*probes)
        fit = max(1, int((task.seconds - start) / each))
        say = f"{each:.2f} s a slice, {start:.0f} s to start; training {fit} slices, {fit / whole.slices:.2f} passes"
        print(say, file=sys.stderr, flush=True)
        epochs, train = 1, _drawn(whole, fit, args.seed, args.output / "train.json")
    trained, seconds = _train(task.cfg, train, args.workers, device, epochs, args.output / "training")

    from mayaku import evaluate

    fractions = evaluate(
        trained["final_weights"],
        annotations=val.annotations,
        images=val.images,
        output_dir=args.output,
        device=device,
    )
    metrics = in_percent(fractions)
    result = {
        "peer": "mayaku",
        "backbone": "ResNet50",
        "like": task.record and task.record["name"],
        "command": _typed(args),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "size": task.cfg.INPUT.MIN_SIZE_TEST,
        "batch": task.cfg.SOLVER.IMS_PER_BATCH,
        "learning_rate": task.cfg.SOLVER.BASE_LR,
        "parameters": count_mayaku_parameters(task.cfg),
        "slices": whole.slices,
        "passes": epochs * train.slices / whole.slices,
        "seconds": round(seconds, 1),
        "versions": {"mayaku": mayaku_version(), **versions()},
        "metrics": metrics,
    }
    write_json(args.output / "result.json", json.loads(json.dumps(result, default=float)))
    for kind, found in metrics.items():
        print(f"{kind}: {', '.join(f'{name} {value:.4g}' for name, value in found.items())}")
    took = f"{result['passes']:.2f} passes of {whole.slices:,} slices in {seconds / 60:.1f} minutes on {device}"
    print(f"{took}; {args.output / 'result.json'}")
    return 0


def in_percent(fractions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """COCO's figures as records have them, of mayaku's, which run from 0 to 1; it has none of a model that found
    nothing, and -1 where there was nothing to find, which is left out."""
    nothing = dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
    return {
        task: {name: 100 * value for name, value in (fractions.get(task) or nothing).items() if value >= 0}
        for task in ("bbox", "segm")
    }


def _typed(args: argparse.Namespace) -> str:
    """The command as a user types it in a checkout, with everything in the folders that the tools take by default."""
    keys = ("name", "config_file", "size", "seed", "minutes", "epochs", "batch", "lr")
    chosen = {key: getattr(args, key) for key in keys}
    chosen |= {"like": args.like and f"docs/zoo/{args.like.name}", "output": "output/mayaku"}
    options = [part for key, value in chosen.items() if value for part in (f"--{key.replace('_', '-')}", str(value))]
    threads = os.environ.get("OMP_NUM_THREADS")
    environment = {"OMP_NUM_THREADS": threads, "DETECTRON2_DATASETS": FOLDER + "/data" if args.like else None}
    settings = [f"{key}={value}" for key, value in environment.items() if value]
    return " ".join([*settings, "python tools/train_mayaku.py", *options])


def _check_same_slices(record: dict[str, Any], sets: dict[str, LesionSet]) -> None:
    for split, dataset in record["data"].items():
        if dataset[0].get("sha256") != described(read_coco(sets[split].annotations))["sha256"]:
            raise UserError(f"{record['name']} is of other slices than {sets[split].annotations}; make that set again.")


def slice_and_start(short: tuple[int, float], long: tuple[int, float]) -> tuple[float, float]:
    """Seconds of a slice and of the start-up, from the slices and seconds of two trainings."""
    (few, first), (many, second) = short, long
    each = max(second - first, 0.0) / (many - few) if many > few else 0.0
    each = each or second / many
    return each, max(0.0, first - few * each)


def _set(name: str, split: str) -> LesionSet:
    path = prepared_json(name, "merge", split)
    if not path.is_file():
        raise UserError(f"{path} is not there; make it with datasets/prepare_cncb.py --name {name}.")
    loaded = load_lesion_json(path)
    return LesionSet(path, loaded.image_root, len(loaded.dicts))


def _drawn(data: LesionSet, slices: int, seed: int, path: Path) -> LesionSet:
    """So many slices of a set, each as often as any other or once more, with their lesions; written to ``path``."""
    content, draw = json.loads(data.annotations.read_bytes()), random.Random(seed)
    lesions: dict[int, list[dict]] = {}
    for lesion in content["annotations"]:
        lesions.setdefault(lesion["image_id"], []).append(lesion)
    images, annotations = [], []
    for first in range(0, slices, data.slices):
        for image in draw.sample(content["images"], min(data.slices, slices - first)):
            images.append({**image, "id": len(images) + 1})
            for lesion in lesions.get(image["id"], []):
                annotations.append({**lesion, "id": len(annotations) + 1, "image_id": len(images)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**content, "images": images, "annotations": annotations})
    return LesionSet(path, data.images, slices)


def _train(
    cfg: CfgNode, data: LesionSet, workers: int, device: str, epochs: int, output: Path
) -> tuple[dict[str, Any], float]:
    """What mayaku's own training gives, and the seconds that it took, evaluation not among them."""
    from mayaku import train

    started = time.perf_counter()
    done = train(
        config=mayaku_config(cfg),
        train_annotations=data.annotations,
        train_images=data.images,
        output_dir=output,
        num_epochs=epochs,
        device=device,
        overrides={
            "solver": {
                "ims_per_batch": cfg.SOLVER.IMS_PER_BATCH,
                "base_lr": cfg.SOLVER.BASE_LR,
                "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
                "clip_gradients_enabled": cfg.SOLVER.CLIP_GRADIENTS.ENABLED,
                "clip_gradients_type": cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE,
                "clip_gradients_value": cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE,
                "optimizer_name": "AdamW",
                "amp_enabled": device == "cuda",
                "amp_dtype": "bf16",
            },
            "input": {"mask_format": "bitmask", "random_flip": "horizontal"},
            "dataloader": {"num_workers": workers, "filter_empty_annotations": False},
            "test": {"eval_period": 0},
        },
    )
    return done, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_command(main))
