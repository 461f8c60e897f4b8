#!/usr/bin/env python
"""Trains mayaku's nearest Mask R-CNN from scratch on a prepared set, for so many minutes, and prints its mask AP.

    pip install mayaku
    python tools/train_mayaku.py --name radiopaedia --minutes 6 --device cuda --output output/mayaku

The set is one that datasets/prepare_cncb.py made: annotations/merge_train.json is trained on, merge_val.json evaluated.
A few steps are trained first, to see how long they take; then, from new random weights, as many slices as fit into the
minutes: the whole set so many times, and a part of it, drawn at random, once more. On a CPU mayaku computes in float32,
whatever is asked of it; on a GPU in bfloat16.

Exit status: 0 done, 2 bad input.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from d2_covid import get_config
from d2_covid.benchmark.mayaku_peer import mayaku_config, mayaku_version
from d2_covid.cli import run_command
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.datasets import prepared_json
from d2_covid.data.files import write_json
from d2_covid.errors import UserError
from d2_covid.inference.model_source import choose_device

PROBE_STEPS = 2, 8
"""Steps of the two trainings that show how long a slice takes, and how long start-up."""


@dataclass(frozen=True)
class LesionSet:
    """A split's json, the folder of its images, and how many slices it names."""

    annotations: Path
    images: Path
    slices: int


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the prepared set")
    parser.add_argument("--model", default="R_18_T1", help="our model whose shape it takes (default R_18_T1)")
    parser.add_argument("--size", type=int, help="side of the input in pixels [that of our config, 512]")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of slices, with --minutes (default 1)")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training")
    length.add_argument("--epochs", type=int, help="of training, instead")
    parser.add_argument("--batch", type=int, default=8, help="slices to a step (default 8)")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of AdamW (default 1e-4)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read (default 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", type=Path, required=True, help="folder for its files and result.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    if mayaku_version() is None:
        raise UserError("mayaku is not installed; run: pip install mayaku")
    device = "cuda" if choose_device(args.device).startswith("cuda") else "cpu"
    opts = ["INPUT.MIN_SIZE_TEST", args.size, "INPUT.MAX_SIZE_TEST", 2 * args.size] if args.size else []
    cfg = get_config(f"segmentation/mask_rcnn_{args.model}_FPN.yaml", opts)
    train, val = (_set(args.name, split) for split in ("train", "val"))
    epochs = args.epochs
    if epochs is None:
        probes = []
        for steps in PROBE_STEPS:
            part = _drawn(train, steps * args.batch, args.seed, args.output / f"probe_{steps}.json")
            _, took = _train(cfg, part, args, device, 1, args.output / f"probe_{steps}")
            probes.append((part.slices, took))
        seconds, start = slice_and_start(*probes)
        fit = max(1, int((args.minutes * 60 - start) / seconds))
        say = f"{seconds:.2f} s a slice, {start:.0f} s to start; training {fit} slices, {fit / train.slices:.2f} passes"
        print(say, file=sys.stderr, flush=True)
        epochs, train = 1, _drawn(train, fit, args.seed, args.output / "train.json")
    trained, seconds = _train(cfg, train, args, device, epochs, args.output / "training")

    from mayaku import evaluate

    metrics = evaluate(
        trained["final_weights"],
        annotations=val.annotations,
        images=val.images,
        output_dir=args.output,
        device=device,
    )
    result = {
        "mayaku": mayaku_version(),
        "device": device,
        "size": cfg.INPUT.MIN_SIZE_TEST,
        "epochs": epochs,
        "slices": train.slices,
        "batch": args.batch,
        "training_seconds": seconds,
        "metrics": metrics,
    }
    write_json(args.output / "result.json", json.loads(json.dumps(result, default=float)))
    for task in ("bbox", "segm"):
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.get(task, {}).items())
        print(f"{task}: {numbers}")
    took = f"{epochs} x {train.slices} slices in {seconds / 60:.1f} minutes on {device}"
    print(f"{took}; {args.output / 'result.json'}")
    return 0


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
    return LesionSet(path, Path(load_lesion_json(path).image_root), len(json.loads(path.read_bytes())["images"]))


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
    cfg, data: LesionSet, args: argparse.Namespace, device: str, epochs: int, output: Path
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
                "ims_per_batch": args.batch,
                "base_lr": args.lr,
                "optimizer_name": "AdamW",
                "amp_enabled": device == "cuda",
                "amp_dtype": "bf16",
            },
            "input": {"mask_format": "bitmask", "random_flip": "horizontal"},
            "dataloader": {"num_workers": args.workers, "filter_empty_annotations": False},
            "test": {"eval_period": 0},
        },
    )
    return done, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_command(main))
