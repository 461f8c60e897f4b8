#!/usr/bin/env python
"""Scores a classifier's saved predictions again, and fits the temperature of its scores on validation data.

    python tools/score_classes.py output/inference/covidx_ct_test/predictions.csv --output rescored
    python tools/score_classes.py output/inference/covidx_ct_test/predictions.csv --output calibrated \\
        --fit-temperature-on output/inference/covidx_ct_val/predictions.csv

Writes results.json, predictions.csv and classification.html. A temperature is fitted on other data than it is judged
on: files that share a slice or a patient are refused. It changes scores, never decisions; to keep it, set
MODEL.CLASSIFIER.TEMPERATURE to the number printed. Exit status: 0 done, 2 bad input (one line on stderr says what).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from d2_covid.cli import run_command
from d2_covid.data.files import write_json
from d2_covid.engine.seeding import seed_number
from d2_covid.errors import UserError
from d2_covid.evaluation.calibration import fit_temperature, image_scores
from d2_covid.evaluation.classification import SCHEMA_VERSION, read_predictions, write_predictions
from d2_covid.evaluation.classification_results import IntervalOptions, SlicePredictions, classification_results
from d2_covid.visualization.classification_page import write_classification_page


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score a classifier's saved predictions again. Research software: not a medical device.",
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path, metavar="CSV", help="predictions.csv of an evaluation")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument("--fit-temperature-on", type=Path, metavar="CSV", help="predictions.csv of validation data")
    scores.add_argument("--temperature", type=float, metavar="T", help="scores are softmax(logits / T) [as saved]")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0: no intervals [1000]")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the resamples [0]")
    parser.add_argument("--patient-k", type=int, default=3, metavar="K", help="slices behind any_k and top_k_mean [3]")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score; returns the exit status."""
    args = build_parser().parse_args(argv)
    predictions = read_predictions(args.predictions)
    temperature = args.temperature
    if args.fit_temperature_on is not None:
        temperature = fitted(args.fit_temperature_on, predictions)
    if temperature is not None:
        if not temperature > 0:
            raise UserError(f"--temperature {temperature}: above 0.")
        predictions = replace(predictions, scores=image_scores(predictions.logits, temperature))
    options = IntervalOptions(args.bootstrap, args.seed)
    results = {
        "schema_version": SCHEMA_VERSION,
        "dataset": args.predictions.resolve().parent.name,
        "temperature": temperature,
        "temperature_fitted_on": None if args.fit_temperature_on is None else str(args.fit_temperature_on),
        **classification_results(predictions, options, args.patient_k),
    }
    write_json(args.output / "results.json", results)
    write_predictions(args.output / "predictions.csv", predictions)
    write_classification_page(results, predictions, args.output / "classification.html")
    if temperature is not None:
        print(f"MODEL.CLASSIFIER.TEMPERATURE {temperature:.4f}")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
        entry = results["measures"][name]
        interval = entry["interval"]
        ends = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval and interval["low"] is not None else ""
        print(f"{name}: " + (f"{entry['value']:.3f}{ends}" if entry["value"] is not None else entry["reason"]))
    for name in ("ece", "brier"):
        value = results["calibration"][name]["value"]
        print(f"{name}: " + ("undefined" if value is None else f"{value:.3f}"))
    print(f"written to {args.output.resolve()}")
    return 0


def fitted(validation_file: Path, judged: SlicePredictions) -> float:
    """The temperature of the validation set's logits.

    Raises:
        UserError: it shares slices or patients with what is to be judged, has other classes, or nothing to fit on.
    """
    validation = read_predictions(validation_file)
    if list(validation.class_names) != list(judged.class_names):
        raise UserError(
            f"{validation_file} has the classes {', '.join(validation.class_names)}, the predictions to score have "
            f"{', '.join(judged.class_names)}."
        )
    for what, own, other in (
        ("slices", validation.files, judged.files),
        ("patients", validation.patient_ids, judged.patient_ids),
    ):
        if shared := set(own) & set(other) - {""}:
            raise UserError(
                f"{validation_file} shares {len(shared)} {what} with the predictions to score ({sorted(shared)[0]}): "
                "fit a temperature on other data than it is judged on."
            )
    try:
        return fit_temperature(validation.logits, validation.truth)
    except ValueError as error:
        raise UserError(f"{validation_file}: {error}.") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
