"""The command ``d2-covid``: parses, calls, prints. Also how every command of the project ends."""

import argparse
import os
import re
import sys
from typing import Callable, Sequence

from detectron2.config import CfgNode

from .config import get_config
from .engine.children import ended_by_signals
from .engine.cores import limit_threads
from .errors import UserError

_KEY = re.compile(r"([A-Z][A-Z0-9_]*)(\.[A-Z][A-Z0-9_]*)+")
_TOP_KEYS = ("CUDNN_BENCHMARK", "OUTPUT_DIR", "SEED", "VIS_PERIOD")


def run_command(main: Callable[[], int | None]) -> int:
    """Run ``main`` as a command, on no more threads than there are cores to use: a :class:`UserError` becomes one line
    on stderr and exit status 2.

    A reader that closes the pipe early (``| head``), Ctrl-C, SIGTERM and a closed terminal end the command quietly, as
    they do others, once it has cleaned up.
    """
    try:
        with ended_by_signals():
            limit_threads()
            return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def parse_with_overrides(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, with config overrides, ``KEY VALUE ...``, at the end: they reach ``opts`` also from behind an option that
    takes any number of values."""
    argv = list(sys.argv[1:] if argv is None else argv)
    start = len(argv)
    while start >= 2 and _is_key(argv[start - 2]):
        start -= 2
    if start < len(argv) and "--" not in argv:
        argv.insert(start, "--")
    args = parser.parse_args(argv)
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts  # argparse keeps it in what remains
    return args


def _is_key(word: str) -> bool:
    """Whether it is a key at the top of the config or in one of its sections; a file may be called IM1.JPG."""
    key = _KEY.fullmatch(word)
    return word in _TOP_KEYS or (key is not None and isinstance(get_config().get(key[1]), CfgNode))


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``d2-covid``; each subcommand sets ``run``, which takes the parsed arguments."""
    # Here, since every tool takes run_command from this module, and few need a model.
    import d2_covid_entry

    from .export import command as export_command
    from .inference import models_command, predict_command
    from .visualization import validate_command

    parser = argparse.ArgumentParser(
        prog="d2-covid", description="Lung lesions in chest CT. Research software: not a medical device."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # `d2-covid` runs it before the package is imported (d2_covid_entry).
    doctor = commands.add_parser("doctor", help="versions, device, what compat had to do, and what is missing")
    doctor.set_defaults(run=lambda _: d2_covid_entry.run_doctor())
    predict = commands.add_parser("predict", help="find lesions in images, DICOM series and volumes")
    predict_command.add_arguments(predict)
    predict.set_defaults(run=predict_command.run, parser=predict)
    export = commands.add_parser("export", help="write a model for use without Detectron2: ONNX, or PyTorch's own")
    export_command.add_arguments(export)
    export.set_defaults(run=export_command.run, parser=export)
    models = commands.add_parser("models", help="the models that ship, and what is known of each")
    models_command.add_arguments(models)
    models.set_defaults(run=models_command.run, parser=models)
    validate = commands.add_parser("validate", help="check a data set: errors and warnings, all at once")
    validate_command.add_arguments(validate)
    validate.set_defaults(run=validate_command.run, parser=validate)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``d2-covid``; exit status 0 done, 2 bad input; a command's help tells others."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
