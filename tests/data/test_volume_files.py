"""NIfTI, MetaImage and NRRD: the same voxels in the same place as other libraries read, and broken ones refused."""

import gzip
import os
import subprocess
import sys

from d2_covid.data import itk_process, limits, volume_files
from d2_covid.data.preprocessing import network_input, window_to_uint8
from d2_covid.data.volume_files import read_volume
from d2_covid.errors import UserError

import nibabel
import numpy as np
import pytest
import SimpleITK

FORMS = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".mha": "MetaImage", ".mhd": "MetaImage", ".nrrd": "NRRD",
         ".nhdr": "NRRD"}  # fmt: skip


def _write(scans, path, volume, affine=None):
    return scans.nifti(path, volume, affine) if ".nii" in path.name else scans.itk(path, volume, affine)


def _read(path, **options):
    form = next(form for suffix, form in FORMS.items() if path.name.endswith(suffix))
    return read_volume(path, form, "scan", **options)


def _refused(path, **options) -> str:
    with pytest.raises(UserError) as error:
        series = _read(path, **options)
        [series.slice(i) for i in range(series.num_slices)]
    message = str(error.value)
    assert "\n" not in message and str(path.parent) in message
    return message


def _oblique() -> np.ndarray:
    """Sagittal: columns run to anterior, rows to inferior, slices to the left, with 6 degrees off; an odd origin."""
    c, s = np.cos(np.radians(6)), np.sin(np.radians(6))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (0, -0.8 * c, 0.8 * s), (0, -1.0 * s, -1.0 * c), (2.0, 0, 0)
    affine[:3, 3] = 12.5, -7.25, 303
    return affine


@pytest.mark.parametrize("suffix", FORMS)
def test_reads_the_same_voxels_as_the_array_and_makes_the_same_network_input(scans, tmp_path, suffix):
    volume = scans.body()
    series = _read(_write(scans, tmp_path / f"scan{suffix}", volume))
    assert series.shape == volume.shape and series.kind == "volume" and series.hounsfield
    assert series.spacing == pytest.approx((2, 1, 0.8)) and not series.warnings
    for k in range(8):
        np.testing.assert_array_equal(series.slice(k), volume[k])
        expected = network_input(window_to_uint8(volume[k], -600, 1500), 64, 128)
        assert network_input(series.gray(k, -600, 1500), 64, 128).equal(expected)


@pytest.mark.parametrize("suffix", FORMS)
def test_a_sagittal_volume_is_read_as_axial_and_a_mask_goes_back(scans, tmp_path, suffix):
    """The mask of low values, made on axial slices and written in the input's grid, marks the input's own."""
    axial = scans.body(slices=10, rows=20, columns=24)
    stored = np.ascontiguousarray(np.flip(axial, (0, 1)).transpose(2, 0, 1))
    path = _write(scans, tmp_path / f"scan{suffix}", stored, _oblique())
    series = _read(path)
    np.testing.assert_array_equal(np.stack([series.slice(i) for i in range(series.num_slices)]), axial)
    assert "another plane than axial" in series.warnings[0] and not series.geometry.is_axial
    mask = np.stack([series.slice(i) < -300 for i in range(series.num_slices)]).astype(np.uint8)
    out = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(series.to_source(mask).transpose(2, 1, 0), series.source_affine_ras), out)
    # SimpleITK reads the input and the mask; both grids agree, and the mask is where the input is low.
    image, written = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(out))
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(written), (SimpleITK.GetArrayFromImage(image) < -300).astype(np.uint8)
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_affine_is_the_inputs_own(scans, tmp_path, suffix):
    affine = _oblique()
    affine[0, 1] = 0.3  # sheared: SimpleITK would refuse it
    path = scans.nifti(tmp_path / f"scan{suffix}", scans.body(), affine)
    np.testing.assert_array_equal(_read(path).source_affine_ras, nibabel.load(path).affine)


def test_nifti_scale_is_applied(scans, tmp_path):
    volume = scans.body().astype(np.float64)
    path = scans.nifti(tmp_path / "scan.nii", ((volume + 1024) * 2).astype(np.int16))
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([0.5, -1024], "<f4").tobytes()
    path.write_bytes(data)
    np.testing.assert_array_equal(_read(path).slice(3), volume[3])


def test_big_endian_nifti2_and_one_slice(scans, tmp_path):
    volume = scans.body(1)
    image = nibabel.Nifti2Image(volume.T, np.diag([-0.8, -1, 2, 1]), nibabel.Nifti2Header(endianness=">"))
    nibabel.save(image, tmp_path / "scan.nii")
    np.testing.assert_array_equal(_read(tmp_path / "scan.nii").slice(0), volume[0])


def test_uncompressed_nifti_is_read_slice_by_slice(scans, tmp_path, monkeypatch):
    series = _read(scans.nifti(tmp_path / "scan.nii", scans.body()))
    read = []
    from d2_covid.data import volume_files

    original = volume_files._read_exactly
    monkeypatch.setattr(volume_files, "_read_exactly", lambda *a: read.append(a[2]) or original(*a))
    series.slice(5)
    assert read == [40 * 48 * 2]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.98])
def test_truncated_volumes_are_refused(scans, tmp_path, suffix, keep):
    noisy = scans.body() + np.random.default_rng(0).integers(0, 30, (8, 40, 48), dtype=np.int16)
    path = _write(scans, tmp_path / f"scan{suffix}", noisy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    message = _refused(path)
    assert any(word in message for word in ("empty file", "damaged", "incomplete", "no such file")), message


def _header(shape, dtype=np.int16) -> bytearray:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytearray(header.binaryblock + b"\0" * 4)


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((32767, 32767, 4), np.int16, "16,777,216 pixels at most"),
        ((512, 512, 32767), np.int16, "bytes at most"),
        ((4096, 4096, 100), np.float64, "bytes at most"),
        ((512, 512, 100), np.int16, "incomplete"),
        ((0, 512, 100), np.int16, "claims"),
        ((-5, 512, 100), np.int16, "claims"),
        ((64, 64, 8, 5), np.int16, "4-dimensional (64 x 64 x 8 x 5)"),
        ((64,), np.int16, "1-dimensional"),
        ((64, 64, 8), np.complex64, "complex64 values"),
        ((64, 64, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "a CT of one number"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_headers_that_claim_too_much_or_the_wrong_thing_are_refused(tmp_path, shape, dtype, message, compress):
    data = bytes(_header(shape, dtype)) + b"\0" * 1000
    path = tmp_path / ("bomb.nii.gz" if compress else "bomb.nii")
    path.write_bytes(gzip.compress(data) if compress else data)
    assert message in _refused(path)


def test_a_bomb_is_not_inflated_beyond_its_claim(tmp_path):
    """64 x 64 x 8 claimed, 200 MB of zeros behind: only what the header claims is ever inflated."""
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(_header((64, 64, 8))))
        for _ in range(50):
            file.write(b"\0" * 2**22)
    assert "can't be Hounsfield" in _refused(path)


@pytest.mark.parametrize("offset", [0, -1, 1e9, float("nan"), float("inf")])
def test_a_voxel_offset_out_of_bounds_is_refused(tmp_path, offset):
    data = _header((8, 8, 8))
    data[108:112] = np.array([offset], "<f4").tobytes()
    path = tmp_path / "scan.nii"
    path.write_bytes(bytes(data) + b"\0" * 2000)
    _refused(path)


@pytest.mark.parametrize("pixdim", [0, np.nan, np.inf, -1e9])
def test_a_spacing_that_is_none_is_refused(scans, tmp_path, pixdim):
    path = scans.nifti(tmp_path / "scan.nii", scans.body())
    data = bytearray(path.read_bytes())
    data[80:92] = np.array([pixdim] * 3, "<f4").tobytes()
    data[252:256] = b"\1\0\0\0"  # qform on, sform off: the spacing is pixdim
    path.write_bytes(data)
    assert any(word in _refused(path) for word in ("spacing", "damaged"))


@pytest.mark.parametrize("named", ["/dev/zero", "../elsewhere.raw", "missing.raw", "LIST", "im%03d.raw 1 9 1", "pipe"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_can_name_only_a_regular_file_beside_it(scans, tmp_path, named, suffix):
    os.mkfifo(tmp_path / "pipe")
    path = scans.itk(tmp_path / f"scan{suffix}", scans.body())
    key = "ElementDataFile = " if suffix == ".mhd" else "data file: "
    text = path.read_bytes().decode("latin-1").splitlines()
    path.write_text("\n".join(key + named if line.startswith(key) else line for line in text) + "\n")
    _refused(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_name_with_a_number_is_one_file(scans, tmp_path, suffix):
    path = scans.itk(tmp_path / f"scan{suffix}", scans.body())
    (tmp_path / "scan.raw").rename(tmp_path / "Patient 12 CT.raw")
    path.write_bytes(path.read_bytes().replace(b"scan.raw", b"Patient 12 CT.raw"))
    assert _read(path).num_slices == 8


def test_a_library_that_does_not_import_is_no_damage_of_the_file(scans, tmp_path, monkeypatch):
    path = scans.nifti(tmp_path / "scan.nii", scans.body())
    message = "`np.sctypes` was removed"
    monkeypatch.setattr(limits, "import_module", lambda module: (_ for _ in ()).throw(AttributeError(message)))
    refused = _refused(path)
    assert f"nibabel, which does not import here ({message})" in refused and "--upgrade" in refused


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_volume_that_memory_does_not_hold_costs_itself_only(scans, tmp_path, monkeypatch, suffix):
    first, second = (_write(scans, tmp_path / f"{name}{suffix}", scans.body()) for name in "ab")
    with monkeypatch.context() as patch:
        if suffix == ".mha":
            patch.setattr(itk_process, "bytearray", lambda *size: _no_memory() if size else bytearray(), raising=False)
        else:
            patch.setattr(volume_files, "_read_exactly", lambda *_: _no_memory())
        with pytest.raises(UserError, match=rf"a{suffix}: not enough memory to read it"):
            _read(first).slice(0)
    assert _read(second).slice(0).shape == scans.body()[0].shape


def _no_memory():
    raise MemoryError


@pytest.mark.parametrize("suffix, count", [(".mhd", 2), (".nhdr", 2), (".mha", 1), (".nii", 1)])
def test_the_files_of_a_volume_are_its_header_and_its_voxels(scans, tmp_path, suffix, count):
    path = _write(scans, tmp_path / f"scan{suffix}", scans.body())
    assert _read(path).source_files == tuple([path, tmp_path / "scan.raw"][:count])


def test_a_name_that_simpleitk_can_not_take_is_said(scans, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = scans.itk(tmp_path / "scan.mha", scans.body()).rename(folder / "scan.mha")
    with pytest.raises(UserError, match=r"caf\\udce9/scan.mha: .* are UTF-8; rename it"):
        _read(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_text_header_that_claims_too_much_is_refused_before_memory_is_taken(scans, tmp_path, suffix):
    path = scans.itk(tmp_path / f"scan{suffix}", scans.body())
    path.write_bytes(path.read_bytes().replace(b"48 40 8", b"65535 65535 8"))
    assert "65535 x 65535 x 8" in _refused(path)
    path.write_bytes(path.read_bytes().replace(b"65535 65535 8", b"512 512 4000"))
    assert "incomplete" in _refused(path)


def test_a_file_that_vanishes_while_it_is_read(scans, tmp_path):
    path = scans.nifti(tmp_path / "scan.nii", scans.body())
    series = _read(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        series.slice(0)


@pytest.mark.parametrize("module, suffix", [("nibabel", ".nii"), ("SimpleITK", ".mha")])
def test_a_missing_reader_is_said_with_the_command(scans, tmp_path, monkeypatch, module, suffix):
    path = _write(scans, tmp_path / f"scan{suffix}", scans.body())
    itk_process._stop()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'd2_covid[dicom]'" in _refused(path)


def test_a_gray_volume_needs_assume_window(scans, tmp_path):
    gray = window_to_uint8(scans.body(), -600, 1500)
    path = scans.nifti(tmp_path / "gray.nii.gz", gray)
    assert "--assume-window" in _refused(path)
    np.testing.assert_array_equal(_read(path, assume_window=True).slice(2), gray[2])


@pytest.mark.parametrize("dimensions", [b"-1", b"100", b"65535", b"99999999999999999999"])
def test_a_header_that_crashes_simpleitk_costs_itself_only(scans, tmp_path, dimensions):
    good = scans.itk(tmp_path / "good.mha", scans.body())
    bad = tmp_path / "bad.mha"
    bad.write_bytes(good.read_bytes().replace(b"NDims = 3", b"NDims = " + dimensions))
    assert "damaged or unreadable" in _refused(bad)
    np.testing.assert_array_equal(_read(good).slice(2), scans.body()[2])


def test_a_reader_that_hangs_is_stopped_and_replaced(scans, tmp_path, monkeypatch):
    path = scans.itk(tmp_path / "scan.mha", scans.body())
    start = subprocess.Popen
    itk_process._stop()
    with monkeypatch.context() as patch:
        patch.setattr(itk_process, "_SECONDS", 0.3)
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        patch.setattr(itk_process.subprocess, "Popen", lambda command, **options: start(sleep, **options))
        assert "damaged or unreadable" in _refused(path)
    np.testing.assert_array_equal(_read(path).slice(2), scans.body()[2])


META = "ObjectType = Image\nNDims = 3\nDimSize = 48 40 8\n{}ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 48 40 8\nendian: little\nencoding: raw\n{}\n"
VECTORS = "space directions: (0.8,0,0) (0, 1, 0) (0,0,2)\n"
# A header, its spacing as read, and which warnings there are: of no spacing, of no orientation.
SPACINGS = {
    "none": (META, "", (1, 1, 1), "so"),
    "MetaImage": (META, "ElementSpacing = 0.8 1 2\n", (2, 1, 0.8), "o"),
    "element size": (META, "ElementSize = 0.8 1 2\n", (2, 1, 0.8), "o"),
    "matrix": (META, "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 0.8 1 2\n", (2, 1, 0.8), ""),
    "none in NRRD": (NRRD, "", (1, 1, 1), "so"),
    "unknown": (NRRD, "spacings: nan nan nan\n", (1, 1, 1), "so"),
    "unknown step": (NRRD, "spacings: 0.8 1 nan\n", (1, 1, 0.8), "so"),
    "NRRD": (NRRD, "spacings: 0.8 1 2\n", (2, 1, 0.8), "o"),
    "vectors": (NRRD, f"space: LPS\n{VECTORS}", (2, 1, 0.8), ""),
    "named in full": (NRRD, f"space: right-anterior-superior\n{VECTORS}", (2, 1, 0.8), ""),
    "vectors of no body": (NRRD, f"space dimension: 3\n{VECTORS}", (2, 1, 0.8), "o"),
}


@pytest.mark.parametrize("case", SPACINGS)
def test_a_text_header_without_spacing_or_orientation_is_said(scans, tmp_path, case):
    header, spacing, expected, said = SPACINGS[case]
    path = tmp_path / ("scan.mha" if header is META else "scan.nrrd")
    path.write_bytes(header.format(spacing).encode() + scans.body().tobytes())
    series = _read(path)
    assert series.spacing == pytest.approx(expected)
    words = {"s": "no spacing in its header", "o": "says nothing on orientation; left and right may be swapped"}
    told = zip(said, series.warnings, strict=True)
    assert all(words[letter] in warning for letter, warning in told)
    assert series.oriented == ("o" not in said)


@pytest.mark.parametrize("suffix", FORMS)
def test_left_and_right_of_files_that_tell_are_known(scans, tmp_path, suffix):
    assert _read(_write(scans, tmp_path / f"scan{suffix}", scans.body())).oriented


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd"])
def test_a_file_of_two_dimensions_has_no_spacing_of_slices(scans, tmp_path, suffix):
    image = SimpleITK.GetImageFromArray(scans.body()[0])
    image.SetSpacing((0.8, 1.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"slice{suffix}"))
    series = _read(tmp_path / f"slice{suffix}")
    assert series.spacing == pytest.approx((1, 1, 0.8))
    (warning,) = [warning for warning in series.warnings if "on orientation" not in warning]
    assert "two-dimensional" in warning and "1 mm a slice" in warning
