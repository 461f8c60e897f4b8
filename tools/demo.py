#!/usr/bin/env python
"""From nothing to trained and measured models: makes phantom CT, trains on it, and shows what the models learned.

    python tools/demo.py [--output demo]

Run it again and it goes on where it stopped; what is done already is not done twice. With other settings than before,
what depends on them is made anew. Exit status: 0 done, 2 a step failed (one line on stderr says which and why).
"""

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from d2_covid import get_config
from d2_covid.cli import run_command
from d2_covid.data.datasets import ensure_registered
from d2_covid.data.files import write_json
from d2_covid.engine.cores import usable_cores
from d2_covid.engine.folder_lock import is_held
from d2_covid.engine.inference_model import has_bfloat16
from d2_covid.engine.steps import Steps, run_script
from d2_covid.errors import UserError
from d2_covid.visualization.gallery import dataset_panels, read_predictions, sample
from d2_covid.visualization.panels import contact_sheet, save_png
from d2_covid.visualization.result_rows import class_rows, counted, lesion_rows
from d2_covid.visualization.run_stage import classification_stage, read_json, segmentation_stage
from d2_covid.visualization.summary import Picture, write_summary

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = "quick/mask_rcnn_R_18_T1_FPN_phantom.yaml"
VALIDATION = "phantom_merge_val"
CLASSIFIER_CONFIG = "quick/covid_ct_mask_net_R_18_T1_FPN_phantom.yaml"
CLASSES = "phantom_classes_val"
STATE = ".demo.json"
PHANTOMS = ("--patients", "28", "--slices", "10", "--size", "384", "--seed", "1", "--val-fraction", "0.25")
OVERLAYS, SHOWN = 40, 10
SCORE_THRESHOLD = 0.75  # the paper's, for its own AP
HEADLINES = ("Mask AP50", "Mask AP", "Box AP50", "Dice of the lesion area")


def mixed_precision() -> list[str]:
    """The override for bfloat16, where the device that trains computes with it: that takes a third off the time.

    Elsewhere it is emulated and slower.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ["SOLVER.AMP.ENABLED", "True"] if has_bfloat16(device) else []


@dataclass(frozen=True)
class Plan:
    """What is made, where, and how large; seconds as on two cores."""

    output: Path
    phantoms: tuple[str, ...] = PHANTOMS
    training: list[str] = field(default_factory=lambda: mixed_precision())
    classifying: list[str] = field(default_factory=list)
    phantom_seconds: int = 50
    training_seconds: int = 300
    classifier_seconds: int = 25

    @property
    def data(self) -> Path:
        return self.output / "data"

    @property
    def segmentation(self) -> Path:
        return self.output / "segmentation"

    @property
    def evaluation(self) -> Path:
        return self.segmentation / "inference" / VALIDATION

    @property
    def classifier(self) -> Path:
        return self.output / "classifier"

    @property
    def classes(self) -> Path:
        return self.classifier / "inference" / CLASSES

    @property
    def overlays(self) -> Path:
        return self.output / "overlays"

    @property
    def page(self) -> Path:
        return self.output / "summary.html"


def quick_plan(output: Path) -> Plan:
    """The same steps in seconds, to see that they work; the model learns nothing."""
    small = "SOLVER.IMS_PER_BATCH 1 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64"
    small += " TEST.BOOTSTRAP 20 TEST.DETECTIONS_PER_IMAGE 5 MODEL.RPN.POST_NMS_TOPK_TEST 10"
    phantoms = ("--patients", "3", "--slices", "4", "--size", "192", "--seed", "1")
    training = ["SOLVER.MAX_ITER", "2", *small.split()]
    few = "SOLVER.EPOCHS 1 MODEL.CLASSIFIER.NUM_ROIS 8 MODEL.CLASSIFIER.HIDDEN_DIM 8".split()
    return Plan(output, phantoms, training, [*small.split(), *few], 5, 10, 10)


def make_phantoms(plan: Plan) -> None:
    script = CHECKOUT / "datasets" / "prepare_phantoms.py"
    # Processes of their own pay off where there is more to make than they take to start.
    workers = min(2, usable_cores()) if plan.phantom_seconds > 10 else 0
    command = [script, "--output", plan.data / "phantom", "--overwrite", *plan.phantoms, "--workers", str(workers)]
    run_script(command, plan.output / "phantoms.log")


def check_ended(folder: Path) -> None:
    """Refuse the folder of a training that runs."""
    if is_held(folder):
        raise UserError(f"Another demo trains in {folder}: wait for its end, stop it, or give another --output.")


def clear(folder: Path) -> None:
    """Remove the folder of an earlier training, which must have ended."""
    check_ended(folder)
    shutil.rmtree(folder, ignore_errors=True)


def train(plan: Plan, resume: bool) -> None:
    if not resume:
        clear(plan.segmentation)
    command = [CHECKOUT / "tools" / "train_net.py", "--config-file", CONFIG, "--resume", "--progress"]
    run_script([*command, *plan.training, "OUTPUT_DIR", plan.segmentation], plan.output / "training.log")


def classify(plan: Plan, resume: bool) -> None:
    if not resume:
        clear(plan.classifier)
    command = [CHECKOUT / "tools" / "train_net.py", "--config-file", CLASSIFIER_CONFIG, "--resume", "--progress"]
    weights = ["MODEL.WEIGHTS", plan.segmentation / "model_final.pth", "OUTPUT_DIR", plan.classifier]
    run_script([*command, *plan.classifying, *weights], plan.output / "classifier.log")


def show(plan: Plan) -> None:
    """Overlays of slices that the model has not seen, and the summary page."""
    ensure_registered([VALIDATION])
    records, metadata = DatasetCatalog.get(VALIDATION), MetadataCatalog.get(VALIDATION)
    predictions = plan.evaluation / "coco_instances_results.json"
    predict = read_predictions(predictions, records, metadata.thing_dataset_id_to_contiguous_id)
    # Most slices of a scan are free of lesions: three of four pictures are to have one.
    with_lesions = sample([record for record in records if record["annotations"]], OVERLAYS * 3 // 4, seed=0)
    without = sample([record for record in records if not record["annotations"]], OVERLAYS - len(with_lesions), seed=0)
    shutil.rmtree(plan.overlays, ignore_errors=True)
    panels = []
    drawing = dataset_panels([*with_lesions, *without], metadata.thing_classes, predict, SCORE_THRESHOLD)
    for panel in tqdm(drawing, total=len(with_lesions) + len(without), desc="drawing", unit="slice", file=sys.stderr):
        if isinstance(panel, UserError):
            raise panel
        save_png(plan.overlays / f"{panel.name}.png", panel.image)
        panels.append(panel)
    save_png(plan.overlays / "contact_sheet.png", contact_sheet([panel.image for panel in panels]))

    shown = sample(panels[: len(with_lesions)], SHOWN - 2, seed=0) + panels[len(with_lesions) :][:2]
    segmentation = segmentation_stage(
        plan.segmentation,
        VALIDATION,
        "Lesion segmentation: Mask R-CNN, ResNet18 truncated by one block",
        "Trained from random weights on phantoms, which are generated pictures and no scans of people, and measured on "
        "phantom patients that it has not seen. This says nothing about how a model does on people.",
        f"configs/{CONFIG}",
        [Picture(panel.image, f"{panel.text}: slice, ground truth, prediction") for panel in shown],
        SCORE_THRESHOLD,
    )
    classification = classification_stage(
        plan.classifier,
        CLASSES,
        "Class of a slice: COVID-CT-Mask-Net",
        "A small network reads the ranked detections of the model above, which stays as it is, and names the class of "
        "the slice. The classes of phantoms differ by rule: in number, size and place of their lesions.",
        f"configs/{CLASSIFIER_CONFIG}",
    )
    lead = "What one command made on this machine: generated CT, two models trained on it, and what they see."
    write_summary(plan.page, "d2_covid demo", lead, [segmentation, classification])


def prepare_output(output: Path, fresh: bool) -> None:
    """Make the folder, or make sure that it is a demo's; with ``fresh``, empty it.

    Raises:
        UserError: it holds something else, or is to be emptied while a demo trains there.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder.")
    state = output / STATE
    if output.is_dir() and any(output.iterdir()):
        if not state.is_file():
            raise UserError(f"--output {output} holds other things than a demo; give a new folder.")
        if fresh:
            plan = Plan(output)
            for training in (plan.segmentation, plan.classifier):
                check_ended(training)
            shutil.rmtree(output)
    if not state.is_file():
        write_json(state, {})


def run(plan: Plan) -> None:
    """All steps, in order."""
    steps = Steps(plan.output / STATE, total=4, say=lambda line: print(line, flush=True))
    annotations = plan.data / "phantom" / "annotations"
    inputs = [plan.phantoms]
    steps.run(
        "making phantom CT",
        inputs,
        [annotations / "merge_train.json", annotations / "merge_val.json"],
        plan.phantom_seconds,
        lambda resume: make_phantoms(plan),
    )
    inputs = [*inputs, get_config(CONFIG, plan.training).dump()]
    steps.run(
        "training and measuring Mask R-CNN",
        inputs,
        [plan.segmentation / "model_final.pth", plan.evaluation / "results.json"],
        plan.training_seconds,
        lambda resume: train(plan, resume),
    )
    inputs = [*inputs, get_config(CLASSIFIER_CONFIG, plan.classifying).dump()]
    steps.run(
        "training and measuring the classifier",
        inputs,
        [plan.classifier / "model_final.pth", plan.classes / "results.json"],
        plan.classifier_seconds,
        lambda resume: classify(plan, resume),
    )
    steps.run(
        "drawing overlays and the summary page",
        [*inputs, str(plan.segmentation.resolve())],
        [plan.page, plan.overlays / "contact_sheet.png"],
        10,
        lambda resume: show(plan),
    )


def report(plan: Plan, seconds: float) -> None:
    """Say what came out and where it is."""
    results = read_json(plan.evaluation / "results.json")
    patients = counted(results["patients"], "phantom patient")
    print(f"\nOn {counted(results['slices'], 'slice')} of {patients} that the model was not trained on:")
    for row in lesion_rows(results):
        if row.name in HEADLINES:
            print(f"  {row.name:<24} {row.value:>8}   95 % interval {row.interval}")
    classes = read_json(plan.classes / "results.json")
    patients = counted(classes["patients"], "phantom patient")
    print(f"\nClass of {counted(classes['slices'], 'slice')} of {patients} that neither model was trained on:")
    for row in class_rows(classes)[:1]:
        print(f"  {row.name:<24} {row.value}   95 % interval {row.interval}")
    table = [[name, *counts] for name, counts in zip(classes["classes"], classes["confusion"]["counts"])]
    table = tabulate(table, ["true \\ called", *classes["classes"]], tablefmt="plain")
    print("\n".join(f"  {line}" for line in table.splitlines()))
    print(f"\n  page      {plan.page.resolve()}")
    print(f"  overlays  {plan.overlays.resolve()}")
    print(f"  models    {(plan.segmentation / 'model_final.pth').resolve()}")
    print(f"            {(plan.classifier / 'model_final.pth').resolve()}")
    print(f"\n{seconds:.0f} s in all. Phantoms are generated pictures: none of this says how a model does on people.")
    print("Research software: not a medical device.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder for everything [demo]")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier demo left there")
    parser.add_argument("--quick-check", action="store_true", help="every step in seconds; the model learns nothing")
    args = parser.parse_args(argv)

    started = time.monotonic()
    prepare_output(args.output, args.fresh)
    plan = quick_plan(args.output) if args.quick_check else Plan(args.output)
    os.environ["DETECTRON2_DATASETS"] = str(plan.data.resolve())
    run(plan)
    report(plan, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
