"""The files of one series: what can be written of it, and the folder that appears whole or not at all."""

import importlib.util
import io
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from ..data.files import atomic_write
from ..data.volumes import Series
from ..errors import UserError
from ..visualization.instances import InstanceArrays
from ..visualization.overlays import CLASS_COLOURS, display_scale, draw_instances, outline, to_rgb
from ..visualization.report import write_report
from .dicom_seg import write_dicom_seg
from .mask_files import lesion_mask_of, lung_mask_of, write_nifti
from .predictions_json import write_predictions
from .predictor import Predictor
from .series_result import SeriesResult
from .slice_result import SliceResult, decode_mask

NEEDS = {"json": None, "overlays": None, "nifti": "nibabel", "dicom-seg": "highdicom", "report": None}
"""What can be saved, and the library each needs besides d2_covid's own."""

DONE = "done.json"
"""Written last into a series' folder: the key of what made it, its files and their sizes."""

READ_AS_INPUT = ("lesions.nii.gz", "lung.nii.gz", "overlays/0000.png", "overlays/lung/0000.png")
"""Files of a series' folder that a later run would take for scans."""

_LUNG_COLOUR = CLASS_COLOURS[4]


def choose_outputs(save: Sequence[str] | None) -> tuple[str, ...]:
    """What to save; None: everything that has its library here.

    Raises:
        UserError: a name that is not known, or one whose library is missing; the message gives the command.
    """
    if save is None:
        return tuple(name for name, module in NEEDS.items() if module is None or _installed(module))
    if not save:
        raise UserError(f"--save names nothing: there are {', '.join(NEEDS)}, separated by commas.")
    for name in save:
        if name not in NEEDS:
            raise UserError(f"--save {name}: there are {', '.join(NEEDS)}, separated by commas.")
        module = NEEDS[name]
        if module is not None and not _installed(module):
            raise UserError(f"--save {name} needs {module}, which is not installed; pip install 'd2_covid[dicom]'.")
    return tuple(dict.fromkeys(save))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def overlay_writer(folder: Path, predictor: Predictor) -> Callable[[SliceResult, np.ndarray], None]:
    """A function for ``Predictor.series(on_slice=)`` that draws each slice, at the moment its pixels are at hand:
    lesions into ``folder/overlays``, the outline of the lung into ``folder/overlays/lung``."""
    classes = predictor.lesion_classes

    def write(result: SliceResult, gray: np.ndarray) -> None:
        name = f"{result.index:04d}.png"
        _write_png(folder / "overlays" / name, draw_instances(gray, instance_arrays(result, classes), classes))
        _write_png(folder / "overlays" / "lung" / name, draw_lung(gray, decode_mask(result.lung_mask)))

    return write


def instance_arrays(result: SliceResult, lesion_classes: Sequence[str]) -> InstanceArrays:
    """A slice's instances as :mod:`d2_covid.visualization` draws them."""
    found = result.instances
    masks = None
    if found and all(one.mask is not None for one in found):
        masks = np.stack([decode_mask(one.mask) for one in found])
    return InstanceArrays(
        boxes=np.array([one.box for one in found], float).reshape(-1, 4),
        classes=np.array([lesion_classes.index(one.class_name) for one in found], int),
        masks=masks,
        scores=np.array([one.score for one in found], float),
    )


def draw_lung(gray: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """A slice with the outline of its lung: (H * scale, W * scale, 3) uint8."""
    scale = display_scale(*gray.shape)
    canvas = to_rgb(gray, scale)
    canvas[outline(np.kron(lung, np.ones((scale, scale), bool)))] = _LUNG_COLOUR
    return canvas


def write_outputs(
    folder: Path,
    result: SeriesResult,
    series: Series,
    predictor: Predictor,
    save: Sequence[str],
    tags: Mapping[str, str],
) -> dict[str, str]:
    """Write all of ``save`` but the overlays.

    Returns:
        What was not written, and why.

    Raises:
        UserError: a file can't be written.
    """
    left_out: dict[str, str] = {}
    if "json" in save:
        write_predictions(folder / "predictions.json", result, series, predictor, dict(tags))
    lesions = lesion_mask_of(result, predictor.lesion_classes)
    if "nifti" in save:
        if series.geometry is None:
            left_out["nifti"] = "loose images have no place in the patient"
        else:
            write_nifti(folder / "lung.nii.gz", series, lung_mask_of(result))
            if predictor.with_masks:
                write_nifti(folder / "lesions.nii.gz", series, lesions)
            else:
                left_out["nifti of lesions"] = "the model has no masks"
    if "dicom-seg" in save:
        if series.kind != "dicom":
            left_out["dicom-seg"] = "the input is no DICOM"
        elif not predictor.with_masks:
            left_out["dicom-seg"] = "the model has no masks"
        else:
            reason = write_dicom_seg(
                folder / "lesions.seg.dcm",
                series,
                lesions,
                predictor.lesion_classes,
                model=predictor.source.name,
                weights_sha256=predictor.source.weights_sha256,
                tags=tags,
            )
            if reason:
                left_out["dicom-seg"] = reason
    if "report" in save:
        write_report(folder / "report.html", result, series, predictor, tags)
    return left_out


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name ``folder``, in place of an earlier result there, only if the block
    ends without an error; else it is removed.

    Raises:
        UserError: it can't be made or put in place, or there is something else at ``folder``.
    """
    part = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists() and not (folder / DONE).is_file():
        raise UserError(f"{folder} exists, and is no result of d2-covid; remove it, or give another output folder.")
    try:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}.") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _write_png(path: Path, image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())
