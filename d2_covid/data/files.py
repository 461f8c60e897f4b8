"""Files that appear whole or not at all."""

import csv
import hashlib
import io
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterable, Iterator

from ..errors import UserError


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file for writing that takes the name ``path`` only once it is complete and on disk.

    Missing parent folders are made. A body that raises leaves an earlier file at ``path`` as it was.

    Args:
        mode: ``"w"`` for text (UTF-8) or ``"wb"`` for bytes. What of a file's name is no UTF-8 becomes text such as
            ``\\udce9``, which json reads back as it was.

    Raises:
        UserError: the folder can't be written to, or the disk is full; the message names ``path``.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give this one what open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 json to ``path``, whole or not at all (:func:`atomic_write`)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a json file.

    Raises:
        UserError: it can't be read, or is no json; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not json: {error}.") from error


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write ``rows``, the header first, as UTF-8 csv to ``path``, whole or not at all (:func:`atomic_write`)."""
    text = io.StringIO()  # a row that raises does so before a file is begun
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        UserError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()
