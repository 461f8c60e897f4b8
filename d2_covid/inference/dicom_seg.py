"""Lesions as a DICOM Segmentation that refers to the instances they were found in, by highdicom."""

import hashlib
import io
import struct
from pathlib import Path
from typing import Any, Collection, Iterable, Mapping, Sequence

import numpy as np

from .. import __version__
from ..data.files import atomic_write
from ..data.limits import one_line, reading
from ..data.volumes import Series
from ..errors import UserError
from .kept_tags import PATIENT_AND_STUDY
from .mask_files import MaskOfSlice, source_planes

# What a segmentation needs of its source: identity, place and size, nothing of the patient.
_NEEDED = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "Rows", "Columns", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "SamplesPerPixel", "ImageType", "InstanceNumber",
]  # fmt: skip
_FRAME_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence")
# What stays of the items in these groups, and in those that describe the frames' dimensions: no labels, no comments.
_IN_ITEMS = {
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "DimensionIndexValues", "InStackPositionNumber", "DimensionOrganizationUID", "DimensionIndexPointer",
    "FunctionalGroupPointer",
}  # fmt: skip
_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
# What highdicom and pydicom raise on headers that lack what they need, or hold values of another type than they should.
_NOT_ENCODED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, struct.error)

NO_LESION = "no lesion was found"
"""Why there is no segmentation where none is missed."""


def write_dicom_seg(
    path: str | Path,
    series: Series,
    mask_of: MaskOfSlice,
    lesion_classes: Sequence[str],
    *,
    model: str,
    weights_sha256: str,
    tags: Mapping[str, str],
) -> str | None:
    """Write the lesions of a DICOM series as a binary segmentation, one segment for each class that was found.

    UIDs tie it to its study and instances; patient and study stay blank but for what ``tags`` names of them.

    Args:
        mask_of: label maps of the axial slices.
        model, weights_sha256: named as the algorithm, and as its serial number.
        tags: as from :func:`.kept_tags.read_tags`; those among ``PATIENT_AND_STUDY`` are carried over.

    Returns:
        None, or why there is no such file: no lesion, or headers that can't be referred to, or hold what can't be read.

    Raises:
        UserError: a source can't be read any more, or the file can't be written.
    """
    planes = {k: plane.copy() for k, plane in enumerate(source_planes(series, mask_of)) if plane.any()}
    if not planes:
        return NO_LESION
    try:
        content = _encoded(series, planes, lesion_classes, model, weights_sha256, sorted(PATIENT_AND_STUDY & set(tags)))
    except _NOT_ENCODED as error:
        return f"its headers do not allow it ({one_line(error, 160)})"
    with atomic_write(path, "wb") as file:
        file.write(content)
    return None


def _encoded(
    series: Series,
    planes: Mapping[int, np.ndarray],
    lesion_classes: Sequence[str],
    model: str,
    weights_sha256: str,
    kept: Collection[str],
) -> bytes:
    import highdicom
    from pydicom.uid import generate_uid

    sources, pixels = _sources(series, planes, kept)
    found = [number for number in range(1, len(lesion_classes) + 1) if (pixels == number).any()]
    # Segments are numbered from 1 without a gap.
    numbers = np.zeros(len(lesion_classes) + 1, np.uint8)
    numbers[found] = np.arange(1, len(found) + 1)
    pixels, names = numbers[pixels], [lesion_classes[number - 1] for number in found]
    seed = [series.identifier, weights_sha256, *(instance.sop_instance_uid for instance in series.instances)]
    # Another threshold, window or version may find other lesions: no two contents share a UID.
    values = [f"{keyword}={sources[0].get(keyword)}" for keyword in kept]
    content = [hashlib.sha256(pixels).hexdigest(), str(list(planes)), model, __version__, *names, *values]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(i, name, model) for i, name in enumerate(names, start=1)],
        series_instance_uid=generate_uid(entropy_srcs=[*seed, "series"]),
        series_number=1,
        sop_instance_uid=generate_uid(entropy_srcs=[*seed, "instance", *content]),
        instance_number=1,
        manufacturer="d2_covid",
        manufacturer_model_name=model[:64],
        software_versions=__version__,
        device_serial_number=weights_sha256[:16],
        content_label="LESIONS",
        content_description="Research use only",
        series_description="d2_covid lesions, research use only",
    )
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def _segment(number: int, name: str, model: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=model[:64], version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )


def _sources(series: Series, planes: Mapping[int, np.ndarray], kept: Collection[str]) -> tuple[list[Any], np.ndarray]:
    """Headers of the instances with lesions, with no more of the patient than ``kept``, and their planes (frames, rows,
    columns)."""
    instances = series.instances
    paths = {instance.path for instance in instances}
    multi_frame = len(paths) < len(instances) or any(instance.frame for instance in instances)
    if not multi_frame:
        return [_header(instances[k].path, kept) for k in planes], np.stack(list(planes.values()))
    if len(paths) > 1:
        raise ValueError("several multi-frame files make up the series")
    source = _header(instances[0].path, kept)
    pixels = np.zeros((int(source.NumberOfFrames), int(source.Rows), int(source.Columns)), np.uint8)
    for k, plane in planes.items():
        pixels[instances[k].frame] = plane
    return [source], pixels


def _header(path: Path, kept: Collection[str]) -> Any:
    """The header of an instance, with no more of the patient than ``kept``.

    Raises:
        UserError: the file can't be read any more.
        ValueError: it holds a value that can't be read.
    """
    import pydicom

    with reading(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_NEEDED, *kept], force=True)
    try:
        with reading(path):
            _make_bare(dataset, kept)
    except UserError as error:  # no reason to lose the series; what it quotes may be of the patient
        raise ValueError(f"{path.name} holds a value that can't be read") from error
    return dataset


def _make_bare(dataset: Any, kept: Collection[str]) -> None:
    for group in (*dataset.get("SharedFunctionalGroupsSequence", ()),
                  *dataset.get("PerFrameFunctionalGroupsSequence", ())):  # fmt: skip
        for element in list(group):
            if element.keyword not in _FRAME_GROUPS:
                del group[element.tag]
            else:
                _strip(element.value)
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        _strip(dataset.get(name, ()))
    for keyword in _EMPTY:
        if keyword not in kept or keyword not in dataset:
            setattr(dataset, keyword, None)
    dataset.setdefault("SliceThickness", None)  # may be empty; highdicom asks for it
    # highdicom refuses character sets that are valid, or nearly so; all text fits into UTF-8.
    dataset.decode()
    dataset.SpecificCharacterSet = "ISO_IR 192"


def _strip(items: Iterable[Any]) -> None:
    """Leave in the items of a sequence what a place takes, and nothing else."""
    for item in items:
        for element in list(item):
            if element.keyword not in _IN_ITEMS:
                del item[element.tag]
