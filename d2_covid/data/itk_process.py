"""SimpleITK at arm's length: in a child process, because damaged MetaImage and NRRD headers crash its C++ code.

Tests with mutated files end in segmentation faults of SimpleITK 2.5, where a crash would take every other input with
it. The child is started at first use, serves one request after the other, and is replaced when it dies.
"""

import atexit
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ..errors import UserError
from .limits import one_line

_SECONDS = 300.0

_child: subprocess.Popen | None = None
_lock = threading.Lock()


def read_header(path: Path, io: str) -> dict[str, Any]:
    """Header of a volume as SimpleITK gives it: ``size``, ``direction``, ``spacing``, ``origin``, ``components``, and
    ``type``, NumPy's name of it or None.

    Args:
        io: SimpleITK's name of the reader.

    Raises:
        UserError: the file is damaged, or SimpleITK is not installed.
    """
    return _ask(path, io, 0)[0]


def read_voxels(path: Path, io: str, size: int) -> bytearray:
    """The voxels of a volume, ``size`` bytes in C order.

    Raises:
        UserError: the file is damaged, or holds another number of bytes.
    """
    return _ask(path, io, size)[1]


def _ask(path: Path, io: str, size: int) -> tuple[dict[str, Any], bytearray]:
    with _lock:
        _check_name(path)
        child = _running(path)
        # A reader that hangs is stopped like one that crashes.
        timer = threading.Timer(_SECONDS, child.kill)
        timer.start()
        try:
            request = {"path": str(path.absolute()), "io": io, "voxels": size > 0}
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            voxels = bytearray()
            if "error" not in answer and size and answer["bytes"] == size:
                voxels = bytearray(size)
                if child.stdout.readinto(voxels) != size:
                    raise EOFError
        except (OSError, EOFError, ValueError) as error:
            _stop()
            raise UserError(
                f"{one_line(path)} is damaged or unreadable (reading it crashed SimpleITK); replace or remove it."
            ) from error
        except BaseException:  # no memory, or Ctrl-C: what is on its way is not the next file's
            _stop()
            raise
        finally:
            timer.cancel()
        if "error" not in answer and answer["bytes"] != size:
            _stop()  # bytes that nobody wants are on their way
            raise UserError(f"{one_line(path)} changed while it was read; run again.")
    if "error" in answer:
        reason = one_line(answer["error"], 160).rstrip(".")
        raise UserError(f"{one_line(path)} is damaged or unreadable ({reason}); replace or remove it.")
    return answer, voxels


def _check_name(path: Path) -> None:
    """Refuse a path that SimpleITK would crash on."""
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{one_line(path)}: SimpleITK reads only files whose names, and their folders', are UTF-8; rename it."
        ) from error


def _running(path: Path) -> subprocess.Popen:
    global _child
    if _child is None or _child.poll() is not None:
        if importlib.util.find_spec("SimpleITK") is None:
            raise UserError(
                f"{one_line(path)}: reading it needs SimpleITK, which is not installed; pip install 'd2_covid[dicom]'."
            )
        # As text, so that the child has no folder of this package on its path; at the root, so that none of the user's.
        source = Path(__file__).with_name("itk_child.py").read_text(encoding="utf-8")
        _child = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(sys.executable).anchor,
        )
    return _child


@atexit.register
def _stop() -> None:
    global _child
    if _child is not None:
        _child.kill()
        _child.wait()
        _child.stdin.close()
        _child.stdout.close()
        _child = None
