"""The folder of a run over many scans: what it may be, and that one run at a time writes into it."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, Sequence

from ..data.globs import is_glob, reaches
from ..engine.folder_lock import held
from ..errors import UserError
from .outputs import READ_AS_INPUT
from .resume import json_object

RECORD, SUMMARY = "run.json", "summary.csv"


def refuse_nested(inputs: Sequence[str | Path], output: Path) -> None:
    """Refuse an output folder that is an input, lies in one, or has files that a glob would match: the next run would
    read its own results."""
    for item in inputs:
        path = Path(item)
        if is_glob(item):
            nested = any(reaches(item, output, [None, *name.split("/")]) for name in READ_AS_INPUT)
        else:
            nested = path.is_dir() and output.resolve().is_relative_to(path.resolve())
        if nested:
            raise UserError(f"The output folder {output} lies in the input {path}; give one outside it.")


def refuse_foreign(output: Path) -> None:
    """Refuse an output folder with a record or summary that is none of predict's, such as the record of a training: a
    run would replace it."""
    found = next((name for name in (RECORD, SUMMARY) if os.path.lexists(output / name)), None)
    if found is not None and not {"notice", "series"} <= json_object(output / RECORD).keys():
        raise UserError(f"{output} holds a {found} that d2-covid predict did not write; give another output folder.")


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Make the folder, and hold it against other runs on this machine; that leaves no file.

    Raises:
        UserError: it can't be made or read, or another run holds it.
    """
    with ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(output, patience=0))
        except OSError as error:
            raise UserError(f"Cannot write {output}: {error.strerror or error}.") from error
        except UserError as error:
            raise UserError(f"Another run writes into {output}; wait for its end, or give another folder.") from error
        yield
