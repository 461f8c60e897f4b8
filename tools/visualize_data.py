#!/usr/bin/env python
"""Draws lesions on slices: the ground truth of a dataset, predictions beside it, or predictions on a folder of images.

    python tools/visualize_data.py --source annotation --dataset cncb_merge_val --limit 20 --output overlays
    python tools/visualize_data.py --source predictions --dataset cncb_merge_val \\
        --predictions output/inference/cncb_merge_val/coco_instances_results.json --output overlays
    python tools/visualize_data.py --source images --input slices/ --weights output/model_best.pth --output overlays

--weights is a checkpoint or the name of a model that ships; --config-file is only needed where a checkpoint does not
carry its config, or to go before it.

One PNG a slice. Beside ground truth, dashed lines mark lesions that were not found and predictions that found none
(overlap, IoU, below 0.5). Exit status: 0 done, 1 some slices can't be drawn, 2 bad
input (one line on stderr says what and how to mend it).
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from d2_covid.cli import parse_with_overrides, run_command
from d2_covid.data.datasets import ensure_registered, register_lesions
from d2_covid.data.lesion_masks import MASK_TYPES
from d2_covid.data.slice_datasets import EVALUATOR_TYPE
from d2_covid.engine.seeding import seed_number
from d2_covid.errors import UserError
from d2_covid.inference.batch import load_model, predict_slices
from d2_covid.inference.model_source import keep_scores_from, model_config
from d2_covid.visualization.gallery import Panel, dataset_panels, find_slices, read_predictions, sample, unique_stems
from d2_covid.visualization.instances import from_instances
from d2_covid.visualization.panels import contact_sheet, save_png, slice_panel

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

SHEET = "contact_sheet.png"
SHEET_PANELS = 60


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw lesions on CT slices. Research software: not a medical device.",
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", required=True, choices=("annotation", "predictions", "images"),
        help="ground truth of a dataset; predictions beside it; or predictions on a folder of images",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the PNG files")

    data = parser.add_argument_group("slices")
    data.add_argument("--dataset", metavar="NAME", help="registered dataset, as cncb_merge_val")
    data.add_argument(
        "--register-lesions", nargs=3, metavar=("NAME", "JSON", "IMAGES"),
        help="your own COCO json, with images below a folder; --dataset NAME may then be left out",
    )  # fmt: skip
    data.add_argument("--input", type=Path, metavar="DIR", help="folder of images, for --source images")
    data.add_argument("--limit", type=_positive, metavar="N", help="draw this many slices, chosen by --seed [all]")
    data.add_argument("--seed", type=seed_number, default=0, help="of that choice [0]")

    predicted = parser.add_argument_group("predictions")
    predicted.add_argument("--predictions", type=Path, metavar="JSON", help="coco_instances_results.json, or a model:")
    predicted.add_argument("--weights", metavar="PTH", help="checkpoint of the model")
    predicted.add_argument("--config-file", metavar="YAML", help="its config [the weights' own]")
    predicted.add_argument(
        "--score-threshold", type=_share, default=0.5, metavar="X", help="leave out predictions that score less [0.5]"
    )
    parser.add_argument(
        "--contact-sheet", action="store_true", help=f"also {SHEET}: up to {SHEET_PANELS} slices in one picture"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config; put them last")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    args = parse_with_overrides(build_parser(), argv)
    check_arguments(args)
    if args.source == "images":
        count, panels = image_panels(args)
    else:
        count, panels = annotated_panels(args)
    thumbnails, failed = [], 0
    for panel in tqdm(panels, total=count, desc="drawing", unit="slice", file=sys.stderr):
        if isinstance(panel, UserError):
            tqdm.write(f"error: {panel}", file=sys.stderr)
            failed += 1
            continue
        save_png(args.output / f"{panel.name}.png", panel.image)
        if args.contact_sheet and len(thumbnails) < SHEET_PANELS:
            thumbnails.append(panel.image)
    if thumbnails:
        save_png(args.output / SHEET, contact_sheet(thumbnails))
    print(f"{count - failed} of {count} slices drawn, in {args.output.resolve()}")
    return 1 if failed else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that don't go together, in a sentence that says which to give."""
    with_model = bool(args.weights)
    if args.config_file and not with_model:
        raise UserError("--config-file goes with --weights; give them, too.")
    if args.source == "images":
        if args.input is None or not with_model:
            raise UserError("--source images needs --input DIR and a model: --weights PTH.")
        if args.predictions or args.dataset or args.register_lesions:
            raise UserError("--source images takes a folder and a model; for a dataset use --source predictions.")
        if args.output.resolve().is_relative_to(args.input.resolve()):
            raise UserError(f"--output {args.output} lies inside --input; the next run would take overlays for slices.")
        return
    if not (args.dataset or args.register_lesions):
        raise UserError(f"--source {args.source} needs --dataset NAME or --register-lesions NAME JSON IMAGES.")
    if args.input is not None:
        raise UserError(f"--input is for --source images; --source {args.source} takes its slices from the dataset.")
    if args.source == "predictions" and bool(args.predictions) == with_model:
        raise UserError("--source predictions needs --predictions JSON, or a model: --weights PTH.")
    if args.source == "annotation" and (args.predictions or with_model):
        raise UserError("--source annotation draws ground truth alone; for predictions use --source predictions.")


def annotated_panels(args: argparse.Namespace) -> tuple[int, Iterator[Panel | UserError]]:
    """How many slices of the dataset are to be drawn, and their panels."""
    if args.register_lesions:
        register_lesions(*args.register_lesions)
    name = args.dataset or args.register_lesions[0]
    ensure_registered([name])
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind != "lesion":
        what = "classes of slices" if kind == EVALUATOR_TYPE else f"data of kind {kind!r}"
        raise UserError(f"Dataset {name} holds {what}, and this draws lesions; give a dataset such as cncb_merge_val.")
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    predict = None
    if args.predictions:
        predict = read_predictions(args.predictions, records, metadata.thing_dataset_id_to_contiguous_id)
    elif args.source == "predictions":
        predict = model_prediction(args, metadata.thing_classes, metadata.get("mask_type"))
    records = sample(records, args.limit, args.seed)
    return len(records), dataset_panels(records, metadata.thing_classes, predict, args.score_threshold)


def image_panels(args: argparse.Namespace) -> tuple[int, Iterator[Panel | UserError]]:
    """How many images of the folder are to be drawn, and their panels, or what is wrong with one."""
    files = sample(find_slices(args.input), args.limit, args.seed)
    cfg = drawing_config(args)
    model, class_names = load_model(cfg), MASK_TYPES[cfg.DATASETS.MASK_TYPE]
    names = [file.relative_to(args.input) for file in files]

    def panels() -> Iterator[Panel | UserError]:
        for file, name, stem in zip(files, names, unique_stems(n.with_suffix("").as_posix() for n in names)):
            try:
                image, instances = next(predict_slices(model, [file], cfg))
            except UserError as error:
                yield error
                continue
            found = from_instances(instances).above(args.score_threshold)
            yield Panel(stem, str(name), slice_panel(image, class_names, predictions=found, name=str(name)))

    return len(files), panels()


def drawing_config(args: argparse.Namespace) -> CfgNode:
    """The model's config, with every detection that is to be drawn."""
    cfg = model_config(args.config_file, args.weights, args.opts)
    keep_scores_from(cfg, args.score_threshold)
    return cfg


def model_prediction(
    args: argparse.Namespace, class_names: Sequence[str], mask_type: str | None
) -> Callable[[dict[str, Any], Any], Any]:
    """A function from a dataset dict and its slice to the model's predictions.

    Args:
        class_names, mask_type: of the dataset; None where its mask type is unknown.
    """
    cfg = drawing_config(args)
    own = MASK_TYPES[cfg.DATASETS.MASK_TYPE]
    if len(own) != len(class_names) or mask_type not in (None, cfg.DATASETS.MASK_TYPE):
        raise UserError(
            f"The model {args.weights} predicts {', '.join(own)}, the dataset has {', '.join(class_names)}; "
            "give a dataset of the model's mask type."
        )
    model = load_model(cfg)
    return lambda record, image: from_instances(next(predict_slices(model, [image], cfg))[1])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(run_command(main))
