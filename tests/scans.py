"""Makes small CT for tests: a body with two lungs, and files of it in every format. The fixture ``scans`` is this."""

import struct
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1, 0, 0, 0, 1, 0)


def body(slices: int = 8, rows: int = 40, columns: int = 48) -> np.ndarray:
    """(slices, rows, columns) ``int16`` Hounsfield units: air, an ellipse of tissue, two lungs that grow and shrink.
    Nothing in it is symmetric, and every slice differs from every other."""
    y, x = np.mgrid[:rows, :columns]
    y, x = (y - rows / 2) / rows * 2, (x - columns / 2) / columns * 2
    volume = np.full((slices, rows, columns), -1000, np.int16)
    for k in range(slices):
        volume[k][(x / 0.92) ** 2 + (y / 0.8) ** 2 < 1] = 40
        size = 0.32 + 0.1 * np.sin(np.pi * (k + 1) / (slices + 1))
        for centre, grey, width in ((-0.42, -850, size), (0.42, -820, size * 0.85)):
            volume[k][((x - centre) / width) ** 2 + (y / 0.55) ** 2 < 1] = grey - k
        top = 3 + k % max(rows - 8, 1)
        volume[k, top : top + 3, columns // 2] = 700
    return volume


def dicom(
    slice_hu: np.ndarray,
    position: tuple[float, float, float] = (0, 0, 0),
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (1.0, 0.8),
    series: str = "1.2.3",
    number: int = 1,
    slope: float = 1,
    intercept: float = -1024,
    syntax: str = ExplicitVRLittleEndian,
    **tags,
) -> Dataset:
    """A CT slice as a DICOM data set; ``tags`` by keyword replace or, with None, remove elements."""
    stored = np.rint((slice_hu.astype(np.float64) - intercept) / slope)
    signed = bool(tags.get("PixelRepresentation", 0))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = CT_CLASS
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number), str(position)])
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", series
    dataset.FrameOfReferenceUID = "1.2.9"
    dataset.InstanceNumber = number
    dataset.PatientName, dataset.PatientID = "", "test"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing, dataset.SliceThickness = list(spacing), 2.0
    dataset.Rows, dataset.Columns = slice_hu.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.WindowCenter, dataset.WindowWidth = [50, -600], [350, 1200]
    dataset.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CT_CLASS)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == "1.2.840.10008.1.2.1.99":  # deflated by pydicom while it writes
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def dicom_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def save(path: Path, data: bytes | Dataset) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else dicom_bytes(data))
    return path


def dicom_series(folder: Path, volume: np.ndarray, step: float = 2.0, zs: list[float] | None = None, **options) -> Path:
    """A folder of axial DICOM files, slice k at z = 10 + k * step or ``zs[k]``, names and numbers out of order."""
    zs = zs or [10 + k * step for k in range(len(volume))]
    for k, (values, z) in enumerate(zip(volume, zs)):
        number = (k * 5) % len(volume) + 1
        save(folder / f"IM{number}_{k * 7 % 10}.dcm", dicom(values, (-20, -30, z), number=number, **options))
    return folder


def enhanced_dicom(volume: np.ndarray, step: float = 2.0, order: list[int] | None = None, **tags) -> Dataset:
    """An enhanced multi-frame CT, its frames stored in ``order``; every second frame has an intercept of its own."""
    order = order or list(range(len(volume)))
    dataset = dicom(volume[0], number=1, SOPClassUID=ENHANCED_CT_CLASS)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    shared = Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.0, 0.8], 2.0
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.NumberOfFrames = len(volume)
    groups, frames = [], []
    for index, k in enumerate(order):
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-20, -30, 10 + k * step]
        values.RescaleSlope, values.RescaleIntercept = 1, -1024 - index % 2
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        groups.append(group)
        frames.append((volume[k].astype(np.int32) + 1024 + index % 2).astype(np.uint16))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = np.stack(frames).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def nifti(path: Path, volume: np.ndarray, affine_lps: np.ndarray | None = None, scale: tuple | None = None) -> Path:
    """A NIfTI of a (slices, rows, columns) array; the affine is from (column, row, slice) to LPS."""
    affine = np.diag([0.8, 1.0, 2.0, 1.0]) if affine_lps is None else np.array(affine_lps, float)
    affine[:2] *= -1
    image = nibabel.Nifti1Image(volume.T, affine)
    image.header.set_xyzt_units("mm")
    if scale:
        image.header.set_slope_inter(*scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def itk(path: Path, volume: np.ndarray, affine_lps: np.ndarray | None = None, compressed: bool = False) -> Path:
    """A MetaImage or NRRD, by its suffix, of a (slices, rows, columns) array."""
    affine = np.diag([0.8, 1.0, 2.0, 1.0]) if affine_lps is None else affine_lps
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(edges.tolist())
    image.SetDirection((affine[:3, :3] / edges).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    return path


def spoil_number(path: Path, keyword: str) -> None:
    """Make the 16-bit number of an element of a DICOM file three bytes long: pydicom can't read it."""
    tag = tag_for_keyword(keyword)
    data, start = path.read_bytes(), struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"US\2\0"
    end = data.index(start) + len(start)
    path.write_bytes(data[: end - 2] + b"\3\0" + data[end : end + 2] + b"\0" + data[end + 2 :])
