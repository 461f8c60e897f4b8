#!/usr/bin/env python
"""Trains mayaku's nearest Mask R-CNN from scratch on a prepared set, for so many minutes, and prints its mask AP.

    pip install mayaku
    python tools/train_mayaku.py --name radiopaedia --minutes 6 --device cuda --output output/mayaku

The set is one that datasets/prepare_cncb.py made: annotations/merge_train.json is trained on, merge_val.json evaluated.
One epoch is trained first, to see how long it takes; then as many as fit into the minutes, from new random weights.

Exit status: 0 done, 2 bad input.
"""

import argparse
import json
import sys
import time
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the prepared set")
    parser.add_argument("--model", default="R_18_T1", help="our model whose shape it takes (default R_18_T1)")
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
    cfg = get_config(f"segmentation/mask_rcnn_{args.model}_FPN.yaml")
    data = {split: _set(args.name, split) for split in ("train", "val")}
    epochs = args.epochs
    if epochs is None:
        _, seconds = _train(cfg, data, args, device, 1, args.output / "one_epoch")
        epochs = max(1, round(args.minutes * 60 / seconds))
        print(f"an epoch takes {seconds:.0f} s; training {epochs}", file=sys.stderr, flush=True)
    trained, seconds = _train(cfg, data, args, device, epochs, args.output / "training")

    from mayaku import evaluate

    annotations, images = data["val"]
    metrics = evaluate(
        trained["final_weights"], annotations=annotations, images=images, output_dir=args.output, device=device
    )
    result = {
        "mayaku": mayaku_version(),
        "device": device,
        "epochs": epochs,
        "batch": args.batch,
        "training_seconds": seconds,
        "metrics": metrics,
    }
    write_json(args.output / "result.json", json.loads(json.dumps(result, default=float)))
    for task in ("bbox", "segm"):
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.get(task, {}).items())
        print(f"{task}: {numbers}")
    print(f"{epochs} epochs in {seconds / 60:.1f} minutes on {device}; {args.output / 'result.json'}")
    return 0


def _set(name: str, split: str) -> tuple[Path, Path]:
    """A split's json and its image folder."""
    path = prepared_json(name, "merge", split)
    if not path.is_file():
        raise UserError(f"{path} is not there; make it with datasets/prepare_cncb.py --name {name}.")
    return path, Path(load_lesion_json(path).image_root)


def _train(cfg, data, args: argparse.Namespace, device: str, epochs: int, output: Path) -> tuple[dict[str, Any], float]:
    """What mayaku's own training gives, and the seconds that it took, evaluation not among them."""
    from mayaku import train

    annotations, images = data["train"]
    started = time.perf_counter()
    done = train(
        config=mayaku_config(cfg),
        train_annotations=annotations,
        train_images=images,
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
