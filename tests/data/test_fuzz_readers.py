"""Mutated files of every format through the whole of reading: a series, or a line; no traceback, no hang, no flood.

400 inputs in the suite, always the same; D2_COVID_FUZZ_INPUTS=20000 makes a longer run.
"""

import gzip
import os
import resource
import signal
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from d2_covid.data import itk_process
from d2_covid.data.discovery import discover
from d2_covid.data.volumes import Series
from d2_covid.errors import UserError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

INPUTS = int(os.environ.get("D2_COVID_FUZZ_INPUTS", "400"))
SECONDS_AN_INPUT = 20
# Of this process above what it had before, and of SimpleITK's process in all: every file is smaller than 100 KB.
MOST_BYTES = 2**28

# Values at which readers go wrong, as they stand in binary and in text headers.
NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
TEXTS = [b"-1", b"0", b"nan", b"inf", b"1e308", b"65535", b"4294967295", b"9" * 20, b"", b"\\", b"\0", b"a\nb"]
# (group, element) of what a DICOM reader takes sizes, places and meaning from, little endian.
TAGS = [b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\x08\0", b"\x28\0\0\1", b"\x28\0\1\1", b"\x28\0\3\1", b"\x28\0\2\0",
        b"\x28\0\x30\0", b"\x28\0\x52\x10", b"\x28\0\x53\x10", b"\x28\0\x04\0", b"\x20\0\x32\0", b"\x20\0\x37\0",
        b"\x20\0\x0e\0", b"\x18\0\x50\0", b"\x08\0\x60\0", b"\x02\0\x10\0", b"\xe0\x7f\x10\0"]  # fmt: skip

_edit = st.one_of(
    st.tuples(st.just("truncate"), st.floats(0, 1)),
    st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("early bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.just("number"), st.floats(0, 1), st.sampled_from(NUMBERS), st.sampled_from([1, 2, 4, 8]), st.booleans()
    ),
    st.tuples(st.just("text"), st.integers(0, 60), st.sampled_from(TEXTS)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 400)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 400)),
    st.tuples(st.just("tag"), st.sampled_from(TAGS), st.sampled_from(NUMBERS), st.booleans()),
)


def _mutate(data: bytes, edits: list[tuple]) -> bytes:
    early = min(len(data), 1500)
    for kind, *details in edits:
        length = len(data)
        if kind == "truncate":
            data = data[: int(details[0] * length)]
        elif kind in ("bytes", "early bytes"):
            at = int(details[0] * (early if kind == "early bytes" else length))
            data = data[:at] + details[1] + data[at + len(details[1]) :]
        elif kind == "number":
            at, size = int(details[0] * early), details[2]
            value = (details[1] % 256**size).to_bytes(size, "big" if details[3] else "little")
            data = data[:at] + value + data[at + size :]
        elif kind == "text":
            words = data[:early].split(b" ")
            words[details[0] % len(words)] = details[1]
            data = b" ".join(words) + data[early:]
        elif kind == "cut":
            at = int(details[0] * length)
            data = data[:at] + data[at + details[1] :]
        elif kind == "repeat":
            at = int(details[0] * length)
            data = data[:at] + data[at : at + details[1]] + data[at:]
        else:
            at = data.find(details[0])
            if at >= 0:  # its value, or its length
                start, size = (at + 8, 2) if details[2] else (at + 6, 2)
                data = data[:start] + (details[1] % 65536).to_bytes(size, "little") + data[start + size :]
    return data


@pytest.fixture(scope="module")
def seeds(scans, tmp_path_factory) -> list[tuple[str, bytes, bytes]]:
    """(name, bytes, bytes of a file beside it) of small good files."""
    folder = tmp_path_factory.mktemp("seeds")
    volume = scans.body(4, 40, 48)
    made = [(f"{name}.dcm", scans.dicom_bytes(dataset)) for name, dataset in {
        "native": scans.dicom(volume[0]),
        "signed": scans.dicom(volume[0], intercept=0, PixelRepresentation=1),
        "rle": scans.dicom(volume[0], syntax=RLELossless),
        "jpeg2000": scans.dicom(volume[0], syntax=JPEG2000Lossless),
        "jpegls": scans.dicom(volume[0], syntax=JPEGLSLossless),
        "deflated": scans.dicom(volume[0], syntax=DeflatedExplicitVRLittleEndian),
        "enhanced": scans.enhanced_dicom(volume),
    }.items()]  # fmt: skip
    for name in ("scan.nii", "scan.nii.gz"):
        made.append((name, scans.nifti(folder / name, volume).read_bytes()))
    for name, compressed in (("a.mha", False), ("b.mha", True), ("a.nrrd", False), ("b.nrrd", True)):
        made.append((name, scans.itk(folder / name, volume, compressed=compressed).read_bytes()))
    gray = np.random.default_rng(0).integers(0, 256, (40, 48))
    for name, values in (("a.png", gray.astype(np.uint8)), ("b.png", (gray * 257).astype(np.uint16)),
                         ("a.jpg", gray.astype(np.uint8)), ("a.tif", gray.astype(np.uint8))):  # fmt: skip
        buffer = BytesIO()
        Image.fromarray(values).save(buffer, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name[-3:]])
        made.append((name, buffer.getvalue()))
    files = [(name, data, b"") for name, data in made]
    files.append(("c.mhd", scans.itk(folder / "c.mhd", volume).read_bytes(), (folder / "c.raw").read_bytes()))
    files.append(("c.nhdr", scans.itk(folder / "c.nhdr", volume).read_bytes(), (folder / "c.raw").read_bytes()))
    return files


def _peak_of_child() -> int:
    """Most bytes that SimpleITK's process has had so far; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{itk_process._child.pid}/status").read_text().splitlines()
    except (AttributeError, OSError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def _time_limit(seconds: int):
    def stop(number, frame):
        raise BaseException(f"an input took more than {seconds} s")  # not an Exception, so that nothing takes it

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read_all(folder, assume_window: bool) -> str:
    """Read a folder as prediction does; how it ended."""
    ended = "nothing"
    for result in discover([folder], assume_window=assume_window):
        if not isinstance(result, Series):
            assert "\n" not in result.message and result.message.isprintable(), result.message
            ended = "refused"
            continue
        try:
            for index in range(min(result.num_slices, 50)):
                gray = result.gray(index, -600, 1500)
                assert gray.ndim == 2 and gray.dtype == np.uint8 and gray.size > 0
            if result.geometry is not None:
                assert np.isfinite(result.slice_extents_mm).all() and np.isfinite(result.affine).all()
            ended = "read"
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable(), error
            ended = "failed while read"
    return ended


def test_good_files_are_read(seeds, tmp_path):
    for number, (name, data, beside) in enumerate(seeds):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(data)
        if beside:
            (folder / "c.raw").write_bytes(beside)
        assert _read_all(folder, assume_window=True) == "read", name


def test_mutated_files(seeds, tmp_path, capfd):
    counts: dict[str, int] = {}
    folder = tmp_path / "input"
    folder.mkdir()
    slowest, child = 0.0, 0
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @seed(20200507)
    @settings(max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(seeds) - 1), st.lists(_edit, min_size=1, max_size=4), st.booleans(), st.booleans())
    def run(which, edits, inside, assume_window):
        nonlocal slowest, child
        name, data, beside = seeds[which]
        if name.endswith(".gz") and inside:
            data = gzip.compress(_mutate(gzip.decompress(data), edits), 1)
        else:
            data = _mutate(data, edits)
        (folder / name).write_bytes(data)
        if beside:
            (folder / "c.raw").write_bytes(beside)
        started = time.monotonic()
        try:
            with _time_limit(SECONDS_AN_INPUT):
                ended = _read_all(folder, assume_window)
        finally:
            for path in folder.iterdir():
                path.unlink()
        slowest, child = max(slowest, time.monotonic() - started), max(child, _peak_of_child())
        counts[ended] = counts.get(ended, 0) + 1

    run()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before) * 1024
    with capfd.disabled():
        print(f" {sum(counts.values())} inputs: {counts}; slowest {slowest:.2f} s, "
              f"memory +{grown / 2**20:.0f} MiB, child {child / 2**20:.0f} MiB")  # fmt: skip
    assert sum(counts.values()) >= INPUTS
    # Some survive, some are refused: the mutations are neither harmless nor hopeless.
    assert counts["read"] > INPUTS / 50 and counts["refused"] > INPUTS / 10
    assert grown < MOST_BYTES and child < MOST_BYTES
