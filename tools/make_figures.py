#!/usr/bin/env python
"""The paper's Figures 2 and 3, and why a slice has its class, from any trained models, on a dataset or on image files.

    python tools/make_figures.py --figure 2 --dataset phantom_classes_val --number 4 --output figure2.png \\
        --config-file configs/classification/covid_ct_mask_net_R_34_T1_FPN.yaml --weights output/cls/model_best.pth \\
        --segmentation-config configs/segmentation/mask_rcnn_R_34_T1_FPN.yaml \\
        --segmentation-weights output/seg/model_best.pth
    python tools/make_figures.py --figure 3 --input a.jpg b.jpg c.jpg --true-class COVID-19 pneumonia control \\
        --config-file configs/segmentation/mask_rcnn_R_34_T1_FPN.yaml --weights output/seg/model_best.pth \\
        --output figure3.png
    python tools/make_figures.py --figure why --dataset phantom_classes_val --output why.png \\
        --config-file configs/classification/covid_ct_mask_net_R_34_T1_FPN.yaml --weights output/cls/model_best.pth
    python tools/make_figures.py --figure why --input a.png b.png --weights classifier_r18_t1 --output why.png

Figure 2, a row a slice: detections with boxes, scores and masks; the raw mask scores of those RoIs, combined; ground
truth where there is one (the mask beside an image of CNCB's layout, or the dataset's lesions); true class and logits.
Figure 3, a row a class: histogram of the detections' scores, and scores against box areas, best 16 and all.
Figure why, a row a slice: the regions that speak for the predicted class and against it, with their shares; what each
adds to the logit of that class (gradient times input), checked by removing it; the classes, and how well the two agree.

--weights names a classifier or a segmentation model, a checkpoint or one that ships; --config-file is only needed
where the weights don't carry their config, or to go before it. Detections and masks come from the segmentation
model, if one is given beside it; figure why is about one classifier. The image classes are those that the classifier
was trained on; beside a segmentation model alone they are the dataset's, else the paper's. Exit status: 0 done, 2 bad
input (one line on stderr says what and how to mend it).
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Sequence

from d2_covid.cli import parse_with_overrides, run_command
from d2_covid.data.datasets import register_lesions
from d2_covid.data.figure_slices import PickedSlice, dataset_slices, file_slices
from d2_covid.data.files import atomic_write
from d2_covid.data.lesion_masks import MASK_TYPES
from d2_covid.data.preprocessing import read_slice
from d2_covid.data.slice_datasets import register_slices_option
from d2_covid.data.slice_lists import IMAGE_CLASSES
from d2_covid.engine.carried_config import check_carried_classes, image_class_names
from d2_covid.engine.checkpoint import check_facts, read_checkpoint
from d2_covid.engine.seeding import seed_number
from d2_covid.errors import UserError
from d2_covid.inference.batch import load_model
from d2_covid.inference.explanation import explain_slice
from d2_covid.inference.model_source import model_config
from d2_covid.inference.ranked import keep_all_detections, predict_ranked
from d2_covid.visualization.decision import Decision, figure_why
from d2_covid.visualization.figures import FigureSlice, figure_2, figure_3
from d2_covid.visualization.instances import InstanceArrays

from tqdm import tqdm


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make the paper's Figures 2 and 3, or show why. Research software: not a medical device.",
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figure", required=True, choices=("2", "3", "why"), help="which of them")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG", help="file to write")

    model = parser.add_argument_group("models")
    model.add_argument("--weights", required=True, metavar="PTH", help="a classifier or a segmentation model")
    model.add_argument("--config-file", metavar="YAML", help="its config [the weights' own]")
    model.add_argument("--segmentation-weights", metavar="PTH", help="segmentation model whose detections to draw")
    model.add_argument("--segmentation-config", metavar="YAML", help="its config [the weights' own]")

    data = parser.add_argument_group("slices")
    data.add_argument("--dataset", metavar="NAME", help="registered dataset of slices or of lesions")
    data.add_argument(
        "--register-slices", nargs="+", metavar="VALUE", help="NAME LIST[:SPLIT] IMAGES [CLASS ...]: your own slices"
    )
    data.add_argument(
        "--register-lesions", nargs=3, metavar=("NAME", "JSON", "IMAGES"),
        help="your own COCO json, with images below a folder; with either, --dataset NAME may be left out",
    )  # fmt: skip
    data.add_argument("--number", type=int, metavar="N", help="so many of it [4; figure 3: one a class]")
    data.add_argument("--seed", type=seed_number, default=0, help="of the choice [0]")
    data.add_argument("--input", nargs="+", type=Path, metavar="IMAGE", help="image files instead of a dataset")
    data.add_argument(
        "--true-class", nargs="+", metavar="CLASS", help="class of the --input files: one for all, or one each"
    )

    parser.add_argument("--top", type=int, metavar="N", help="best detections to show [8; figure 3: 16]")
    parser.add_argument(
        "--score-threshold", type=float, default=0.1, metavar="X",
        help="figure 2: of them, show those that score at least this, and always the first [0.1]",
    )  # fmt: skip
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configs; put them last")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    args = parse_with_overrides(build_parser(), argv)
    check_arguments(args)
    if args.register_slices:
        register_slices_option(args.register_slices)
        args.dataset = args.dataset or args.register_slices[0]
    if args.register_lesions:
        register_lesions(*args.register_lesions)
        args.dataset = args.dataset or args.register_lesions[0]
    classifier_cfg = figure_config(args.config_file, args.weights, args.opts)
    classifies = classifier_cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet"
    if args.figure == "why" and not classifies:
        raise UserError(f"--figure why explains a classifier's class; {args.weights} is a segmentation model.")
    picked, image_classes = pick(args, classifier_cfg if classifies else None)
    models = [(load_model(classifier_cfg), classifier_cfg)]
    if args.segmentation_weights:
        cfg = figure_config(args.segmentation_config, args.segmentation_weights, args.opts)
        models.append((load_model(cfg), cfg))
    names = MASK_TYPES[models[-1][1].DATASETS.MASK_TYPE]
    draw = decision if args.figure == "why" else figure_slice
    slices = [draw(item, models) for item in tqdm(picked, desc="predicting", unit="slice", file=sys.stderr)]
    if args.figure == "2":
        png = figure_2(slices, names, image_classes, top=args.top or 8, threshold=args.score_threshold)
    elif args.figure == "3":
        png = figure_3(slices, image_classes, top=args.top or 16)
    else:
        png = figure_why(slices, image_classes, limit=args.top or 8)
    with atomic_write(args.output, "wb") as file:
        file.write(png)
    print(f"Figure {args.figure} of {len(slices)} slices, in {args.output.resolve()}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that don't go together, in a sentence that says which to give."""
    if args.segmentation_config and not args.segmentation_weights:
        raise UserError("--segmentation-config goes with --segmentation-weights; give them, too.")
    if args.figure == "why" and args.segmentation_weights:
        raise UserError("--figure why shows what the classifier saw: leave out --segmentation-weights.")
    if bool(args.input) == bool(args.dataset or args.register_slices or args.register_lesions):
        raise UserError("Give slices: --dataset NAME, --register-slices, --register-lesions, or else --input IMAGE ...")
    if args.true_class and not args.input:
        raise UserError("--true-class goes with --input; a dataset knows its classes.")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output}: a figure is written as .png.")
    for name in ("number", "top"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: 1 or more.")


def pick(args: argparse.Namespace, classifier: Any | None) -> tuple[list[PickedSlice], Sequence[str]]:
    """The slices of the figure, and the names of the image classes.

    Args:
        classifier: config of the classifier; None where a segmentation model is drawn alone.
    """
    facts, own = {}, IMAGE_CLASSES
    if classifier is not None:
        facts = read_checkpoint(classifier.MODEL.WEIGHTS).get("d2_covid", {})
        check_facts(facts, classifier, args.weights)
        own = image_class_names(classifier, facts)
    if args.input:
        return file_slices(args.input, args.true_class or (), own), own
    per_class = args.figure == "3" and args.number is None
    picked, of_dataset = dataset_slices(args.dataset, None if per_class else args.number or 4, args.seed)
    if of_dataset and classifier is not None:
        check_number_of_classes(classifier, of_dataset)
        check_carried_classes(facts, [args.dataset], args.weights)
    return picked, of_dataset or own


def figure_config(config_file: str | None, weights: str, opts: Sequence[str]) -> Any:
    """The model's config, with its weights and every detection that may be ranked."""
    cfg = model_config(config_file, weights, opts)
    keep_all_detections(cfg)
    return cfg


def check_number_of_classes(cfg: Any, image_classes: Sequence[str]) -> None:
    """Refuse a classifier with another number of classes than the slices have."""
    if cfg.MODEL.CLASSIFIER.NUM_CLASSES != len(image_classes):
        raise UserError(
            f"The slices have {len(image_classes)} classes ({', '.join(image_classes)}), and the classifier has "
            f"{cfg.MODEL.CLASSIFIER.NUM_CLASSES}; give slices of the classes that it was trained on."
        )


def figure_slice(item: PickedSlice, models: Sequence[tuple[Any, Any]]) -> FigureSlice:
    """What the models say of a slice: class of the first, detections and masks of the last."""
    image = read_slice(item.file)
    predictions = [predict_ranked(model, image, cfg) for model, cfg in models]
    found = predictions[-1]
    return FigureSlice(
        name=item.name,
        image=image,
        instances=InstanceArrays(found.boxes, found.classes, found.masks, found.scores),
        mask_logits=found.mask_logits,
        truth=item.truth(image.shape),
        lungs=item.has_lungs,
        true_class=item.true_class,
        image_logits=predictions[0].image_logits,
    )


def decision(item: PickedSlice, models: Sequence[tuple[Any, Any]]) -> Decision:
    """Why the classifier, the first model, gives a slice its class."""
    image = read_slice(item.file)
    found = explain_slice(models[0][0], image, models[0][1])
    return Decision(
        name=item.name,
        image=image,
        boxes=found.instances.pred_boxes.tensor.numpy(),
        contributions=found.contributions.numpy(),
        shares=found.shares.numpy(),
        removal=found.removal.numpy(),
        image_logits=found.image_logits.numpy(),
        agreement=found.agreement,
        true_class=item.true_class,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
