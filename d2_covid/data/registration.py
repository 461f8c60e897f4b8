"""Command-line options that give data of one's own a name."""

import argparse

from .datasets import register_lesions
from .slice_datasets import register_slices_option


def add_registration_options(parser: argparse.ArgumentParser, used_by: str) -> None:
    """``--register-lesions`` and ``--register-slices``, each repeatable; ``used_by`` is where the names are typed."""
    parser.add_argument(
        "--register-lesions",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help=f"name a COCO json of your own, with images below a folder, for {used_by}; repeatable",
    )
    parser.add_argument(
        "--register-slices",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "LIST[:SPLIT] IMAGES [CLASS ...]"),
        help="name a list of slices with their classes, and its images, likewise; the first class is the one without "
        "disease",
    )


def register_named(args: argparse.Namespace) -> None:
    """Register what :func:`add_registration_options` read.

    Raises:
        UserError: values that don't fit, or a name that stands for other data.
    """
    for name, json_file, images in args.register_lesions:
        register_lesions(name, json_file, images)
    for values in args.register_slices:
        register_slices_option(values)
