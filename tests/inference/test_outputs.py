"""Outputs, read back with other libraries: the same voxels in the same place."""

import csv
import errno
import json
import math
import os

from d2_covid.data import files
from d2_covid.data.discovery import discover
from d2_covid.data.geometry import flip_lps_ras
from d2_covid.data.volumes import series_from_array
from d2_covid.errors import UserError
from d2_covid.inference.kept_tags import check_keywords, read_tags
from d2_covid.inference.mask_files import lung_mask_of, write_nifti
from d2_covid.inference.outputs import DONE, choose_outputs, draw_lung, overlay_writer, whole_folder, write_outputs
from d2_covid.inference.predictions_json import schema
from d2_covid.inference.predictor import Predictor
from d2_covid.inference.summary_table import SummaryRow, write_summary

import highdicom
import nibabel
import numpy as np
import pycocotools.mask as mask_util
import pydicom
import pytest
import SimpleITK
from PIL import Image

SLICES = 5
ALL = ("json", "overlays", "nifti", "dicom-seg", "report")


def _write(known, source, folder, save=ALL, tags=None):
    series = source if not isinstance(source, (str, os.PathLike)) else next(iter(discover([source])))
    folder.mkdir(exist_ok=True)
    result = known.series(series, on_slice=overlay_writer(folder, known) if "overlays" in save else None)
    return series, result, write_outputs(folder, result, series, known, save, tags or {})


def _ggo(volume: np.ndarray) -> np.ndarray:
    return (volume >= -864) & (volume <= -848)  # gray 83 to 85


def _oblique() -> np.ndarray:
    angle = np.radians(11)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.8, 1.0, 2.0], (-20.5, 33.25, 110)
    return affine


def _flipped() -> np.ndarray:
    """Row 0 posterior, column 0 at the patient's left, slice 0 superior."""
    affine = np.diag([-0.8, -1.0, -2.0, 1.0])
    affine[:3, 3] = (7, 8, 9)
    return affine


def _coronal() -> np.ndarray:
    """Slices from front to back, rows from head to feet."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = 0.8, -1.5, 1.2, 1
    affine[:3, 3] = (1, 2, 3)
    return affine


PLACES = {"plain": None, "oblique": _oblique(), "flipped": _flipped(), "coronal": _coronal()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_masks_lie_on_their_voxels(place, suffix, known, scans, tmp_path):
    volume = scans.body(SLICES)
    if place == "coronal":
        volume = np.ascontiguousarray(scans.body(30, 40, 48)[::-1].transpose(1, 0, 2))
    write = scans.nifti if suffix.startswith(".nii") else scans.itk
    path = write(tmp_path / f"scan{suffix}", volume, PLACES[place])
    _write(known, path, tmp_path / "out", ("nifti",))
    source, lesions, lung = (
        SimpleITK.ReadImage(str(file))
        for file in (path, tmp_path / "out" / "lesions.nii.gz", tmp_path / "out" / "lung.nii.gz")
    )
    for mask in (lesions, lung):
        assert mask.GetSize() == source.GetSize() and mask.GetPixelIDValue() == SimpleITK.sitkUInt8
        assert np.allclose(mask.GetOrigin(), source.GetOrigin(), atol=1e-3)
        assert np.allclose(mask.GetSpacing(), source.GetSpacing(), atol=1e-5)
        assert np.allclose(mask.GetDirection(), source.GetDirection(), atol=1e-5)
    found, values = SimpleITK.GetArrayFromImage(lesions), SimpleITK.GetArrayFromImage(source)
    assert ((found == 2) == (values == 700)).all()
    assert (found == 1).any() and ((found == 1) == _ggo(values)).all()
    lung_values = SimpleITK.GetArrayFromImage(lung)
    assert set(np.unique(lung_values)) == {0, 1} and (values[lung_values == 1] < -700).mean() > 0.8


def test_masks_of_a_nifti_without_orientation_have_none_either(known, scans, tmp_path):
    """What programs make of such a file differs; each must make the same of scan and mask."""
    image = nibabel.load(scans.nifti(tmp_path / "oriented.nii", scans.body(SLICES)))
    path = tmp_path / "scan.nii.gz"
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    _write(known, path, tmp_path / "out", ("nifti",))
    for name in ("lesions", "lung"):
        mask = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.allclose(mask.affine, nibabel.load(path).affine)
        pair = [SimpleITK.ReadImage(str(one)) for one in (path, tmp_path / "out" / f"{name}.nii.gz")]
        for fact in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert np.allclose(*(getattr(one, fact)() for one in pair), atol=1e-5)


def test_nifti_affine_is_the_inputs_own(known, scans, tmp_path):
    path = scans.nifti(tmp_path / "scan.nii.gz", scans.body(SLICES), _oblique())
    _write(known, path, tmp_path / "out", ("nifti",))
    source, mask = nibabel.load(path), nibabel.load(tmp_path / "out" / "lesions.nii.gz")
    assert np.array_equal(mask.affine.astype(np.float32), source.affine.astype(np.float32))
    assert mask.header.get_xyzt_units()[0] == "mm" and "research use only" in str(mask.header["descrip"])


@pytest.mark.parametrize("form, order", [(nibabel.Nifti1Image, "<"), (nibabel.Nifti2Image, ">")])
@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_masks_of_a_nifti_of_two_places_have_both(shear, form, order, known, scans, tmp_path):
    """Programs differ in which of the two they go by; each must make the same of scan and mask."""
    image = form(scans.body(SLICES).T, None, form.header_class(endianness=order))
    qform, sform = np.diag([-0.8, -1.0, 2.0, 1.0]), flip_lps_ras(_oblique())
    sform[0, 1] += shear
    image.set_qform(qform, 1)
    image.set_sform(sform, 2)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    _write(known, tmp_path / "scan.nii.gz", tmp_path / "out", ("nifti",))
    paths = [tmp_path / name for name in ("scan.nii.gz", "out/lesions.nii.gz", "out/lung.nii.gz")]
    for one in map(nibabel.load, paths):
        for found, code, expected in ((one.get_qform, 1, qform), (one.get_sform, 2, sform)):
            assert found(coded=True)[1] == code
            np.testing.assert_allclose(found(), expected, atol=1e-4)
    if form is nibabel.Nifti1Image:
        scan, *masks = (SimpleITK.ReadImage(str(path)) for path in paths)
        for mask in masks:
            for fact in ("GetOrigin", "GetSpacing", "GetDirection"):
                assert np.allclose(getattr(mask, fact)(), getattr(scan, fact)(), atol=1e-4), fact


def test_the_same_masks_are_the_same_bytes(known, scans, tmp_path):
    path = scans.nifti(tmp_path / "scan.nii.gz", scans.body(2))
    for name in "ab":
        _write(known, path, tmp_path / name, ("nifti", "json"))
    for file in ("lesions.nii.gz", "lung.nii.gz", "predictions.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def _read_dicom(folder) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_masks_of_a_dicom_series_lie_on_its_voxels(known, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "scan", scans.body(SLICES))
    _write(known, folder, tmp_path / "out", ("nifti",))
    source, mask = _read_dicom(folder), SimpleITK.ReadImage(str(tmp_path / "out" / "lesions.nii.gz"))
    for attribute in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(mask, attribute)(), getattr(source, attribute)(), atol=1e-4), attribute
    found, values = SimpleITK.GetArrayFromImage(mask), SimpleITK.GetArrayFromImage(source)
    assert ((found == 2) == (values == 700)).all() and ((found == 1) == _ggo(values)).all()


def test_dicom_seg_refers_to_the_instances_and_their_pixels(known, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "scan", scans.body(SLICES))
    _, _, left_out = _write(known, folder, tmp_path / "out", ("dicom-seg",))
    assert left_out == {}
    segmentation = highdicom.seg.segread(tmp_path / "out" / "lesions.seg.dcm")
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    referred = segmentation.ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == set(sources)
    first = next(iter(sources.values()))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert segmentation[keyword].value == first[keyword].value
    assert referred.SeriesInstanceUID == first.SeriesInstanceUID != segmentation.SeriesInstanceUID
    assert [s.SegmentLabel for s in segmentation.SegmentSequence] == ["GGO", "consolidation"]
    uids = list(sources)
    found = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    for plane, uid in zip(found, uids, strict=True):
        values = sources[uid].pixel_array.astype(int) - 1024
        assert ((plane == 2) == (values == 700)).all() and ((plane == 1) == _ggo(values)).all()


def test_dicom_seg_of_a_multi_frame_file(known, scans, tmp_path):
    volume = scans.body(4)
    path = scans.save(tmp_path / "scan.dcm", scans.enhanced_dicom(volume, order=[2, 0, 3, 1]))
    _, _, left_out = _write(known, path, tmp_path / "out", ("dicom-seg",))
    assert left_out == {}
    segmentation = highdicom.seg.segread(tmp_path / "out" / "lesions.seg.dcm")
    uid = pydicom.dcmread(path).SOPInstanceUID
    found = segmentation.get_pixels_by_source_frame(uid, [1, 2, 3, 4], combine_segments=True)
    for plane, k in zip(found, [2, 0, 3, 1], strict=True):
        assert ((plane == 2) == (volume[k] == 700)).all()


def test_a_segmentation_is_left_out_where_there_is_none_to_make(known, scans, tmp_path):
    air = np.full((3, 40, 48), -1000, np.int16)
    air[:, 8:-8, 8:-8] = 40
    empty = scans.dicom_series(tmp_path / "empty", air)
    volume = scans.nifti(tmp_path / "scan.nii", scans.body(2))
    bare = scans.dicom_series(tmp_path / "bare", scans.body(3), FrameOfReferenceUID=None)
    image = tmp_path / "slice.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(image)
    for source, name, reason in (
        (empty, "dicom-seg", "no lesion"),
        (volume, "dicom-seg", "no DICOM"),
        (bare, "dicom-seg", "headers"),
        (image, "nifti", "no place"),
    ):
        _, _, left_out = _write(known, source, tmp_path / f"out-{source.name}", ("nifti", "dicom-seg"))
        assert reason in left_out[name], source
        assert not (tmp_path / f"out-{source.name}" / "lesions.seg.dcm").exists()


def test_a_segmentation_needs_no_thickness_of_slices(known, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "scan", scans.body(3), SliceThickness=None)
    _, _, left_out = _write(known, folder, tmp_path / "out", ("dicom-seg",))
    assert left_out == {} and (tmp_path / "out" / "lesions.seg.dcm").is_file()


HEADER = {"PatientName": "Doe^Jane", "PatientBirthDate": "19430217", "PatientID": "MRN-4711", "StudyDate": "20200301",
          "ReferringPhysicianName": "Welby^Marcus", "StudyDescription": "Chest secret", "ImageComments": "free text",
          "SeriesDescription": "secret two", "InstitutionName": "St Elsewhere", "AccessionNumber": "ACC99",
          "OperatorsName": "Op^One", "PatientAddress": "1 Long Road", "DeviceSerialNumber": "SN-CT-5"}  # fmt: skip


def test_nothing_of_the_patient_but_what_is_asked_for(known, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "scan", scans.body(3), **HEADER)
    series, _, left_out = _write(known, folder, tmp_path / "plain")
    assert left_out == {} and series.instances
    for file in (path for path in (tmp_path / "plain").rglob("*") if path.is_file()):
        data = file.read_bytes()
        assert not [value for value in HEADER.values() if value.encode() in data], file
    tags = read_tags(series, ["PatientID", "StudyDate", "KVP"])
    assert tags == {"PatientID": "MRN-4711", "StudyDate": "20200301"}
    _write(known, folder, tmp_path / "kept", tags=tags)
    assert json.loads((tmp_path / "kept" / "predictions.json").read_text())["input"]["tags"] == tags
    kept = pydicom.dcmread(tmp_path / "kept" / "lesions.seg.dcm")
    assert (kept.PatientID, kept.StudyDate, kept.PatientName) == ("MRN-4711", "20200301", "")


def test_keywords_that_dicom_does_not_have():
    check_keywords(["PatientID"])
    for keyword in ("Patient's Name", "PixelData", "RequestAttributesSequence"):
        with pytest.raises(UserError, match="keep-tags"):
            check_keywords([keyword])


# ---- predictions.json ----


def check(value, rule, root, path="$"):
    """The part of JSON Schema that the published one uses."""
    if "$ref" in rule:
        return check(value, root["$defs"][rule["$ref"].rpartition("/")[2]], root, path)
    if "anyOf" in rule:
        errors = []
        for option in rule["anyOf"]:
            try:
                return check(value, option, root, path)
            except AssertionError as error:
                errors.append(error)
        raise errors[0]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    types = rule.get("type", [])
    types = [types] if isinstance(types, str) else types
    if value is None:
        assert "null" in types, path
        return None
    if types:
        found = [kind for kind in types if kind != "null" and isinstance(value, kinds[kind])]
        assert found and (not isinstance(value, bool) or found == ["boolean"]), f"{path}: {value!r} is no {types}"
    assert "const" not in rule or value == rule["const"], path
    assert "enum" not in rule or value in rule["enum"], path
    assert value >= rule["minimum"] if "minimum" in rule else True, path
    assert value <= rule["maximum"] if "maximum" in rule else True, path
    if isinstance(value, list):
        assert rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)), path
        for index, item in enumerate(value):
            check(item, rule.get("items", {}), root, f"{path}[{index}]")
    if isinstance(value, dict):
        properties, extra = rule.get("properties", {}), rule.get("additionalProperties", True)
        assert set(rule.get("required", ())) <= set(value), f"{path} lacks {set(rule['required']) - set(value)}"
        for key, item in value.items():
            assert key in properties or extra is not False, f"{path}.{key} is not in the schema"
            check(item, properties.get(key, extra if isinstance(extra, dict) else {}), root, f"{path}.{key}")


def test_predictions_follow_the_published_schema(known, classifier_weights, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "scan", scans.body(3))
    image = tmp_path / "slice.png"
    Image.fromarray(scans.body(1)[0].clip(0, 255).astype(np.uint8)).save(image)
    classifier = Predictor(weights=classifier_weights, device="cpu", score_threshold=0.0)
    for number, (predictor, source) in enumerate([(known, folder), (classifier, folder), (classifier, image)]):
        _write(predictor, source, tmp_path / str(number), ("json",))
        found = json.loads((tmp_path / str(number) / "predictions.json").read_text())
        check(found, schema(), schema())
        assert "Research use only" in found["notice"]
    broken = json.loads((tmp_path / "1" / "predictions.json").read_text())
    broken["slices"][0]["instances"][0]["score"] = "high"
    with pytest.raises(AssertionError, match="score"):
        check(broken, schema(), schema())


def test_predictions_say_what_was_found(known, scans, tmp_path):
    volume = scans.body(3)
    folder = scans.dicom_series(tmp_path / "scan", volume)
    series, result, _ = _write(known, folder, tmp_path / "out", ("json",), {"StudyDate": "20200301"})
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found["label_values"] == {"0": "background", "1": "GGO", "2": "consolidation"}
    assert found["result"]["lesion_volume_ml"] == pytest.approx(result.lesion_volume_ml, abs=1e-4)
    assert np.allclose(found["input"]["affine_lps"], series.affine)
    uids = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    for one in found["slices"]:
        values = uids[one["sop_instance_uid"]].pixel_array.astype(int) - 1024
        bar = next(i for i in one["instances"] if i["class"] == "consolidation")
        assert (mask_util.decode(bar["mask"]).astype(bool) == (values == 700)).all()
        assert one["name"] in {path.name for path in folder.iterdir()}


# ---- overlays, folders, failures ----


def test_overlays_of_every_slice(known, scans, tmp_path):
    _write(known, series_from_array(scans.body(2, 64, 64), (2, 1, 1)), tmp_path / "out", ("overlays",))
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert files == [f"overlays/{name}" for name in ("0000.png", "0001.png", "lung/0000.png", "lung/0001.png")]
    for file in files:
        pixels = np.asarray(Image.open(tmp_path / "out" / file)).astype(int)
        assert pixels.shape == (512, 512, 3) and (np.ptp(pixels, axis=2) > 40).any()  # gray with something coloured


def test_the_lungs_outline_is_inside_it():
    lung = np.zeros((512, 512), bool)
    lung[100:200, 50:300] = True
    drawn = draw_lung(np.zeros((512, 512), np.uint8), lung).any(axis=2)
    assert drawn.any() and not drawn[~lung].any() and not drawn[110:190, 60:290].any()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "scan"
    with pytest.raises(ZeroDivisionError), whole_folder(target) as part:
        (part / "a").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with whole_folder(target) as part:
            assert not (part / "a").exists()
            (part / "a").write_text(text)
            (part / DONE).write_text("{}")
    assert (target / "a").read_text() == "two"
    with pytest.raises(UserError), whole_folder(target) as part:
        raise UserError("bad series")
    assert (target / "a").read_text() == "two" and list(tmp_path.iterdir()) == [target]


def test_a_folder_of_someone_else_stays(tmp_path):
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no result of d2-covid"), whole_folder(tmp_path / "scan"):
        pass
    assert (tmp_path / "scan" / "thesis.tex").read_text() == "x"


def test_a_full_disk_is_one_line_and_leaves_nothing(known, scans, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = scans.nifti(tmp_path / "scan.nii", scans.body(2))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught, whole_folder(tmp_path / "out" / "scan") as part:
        _write(known, source, part)
    assert "\n" not in str(caught.value) and list((tmp_path / "out").iterdir()) == []


def test_outputs_are_chosen_by_name_and_library(monkeypatch):
    assert choose_outputs(None) == ALL and choose_outputs(["json", "json"]) == ("json",)
    with pytest.raises(UserError, match="there are json"):
        choose_outputs(["jsn"])
    monkeypatch.setattr("d2_covid.inference.outputs._installed", lambda module: module != "highdicom")
    assert choose_outputs(None) == ("json", "overlays", "nifti", "report")
    with pytest.raises(UserError, match="pip install"):
        choose_outputs(["dicom-seg"])


def test_the_shear_of_a_tilted_gantry_stands_in_the_sform_alone(known, scans, tmp_path):
    c, s = math.cos(math.radians(12)), math.sin(math.radians(12))
    for k, plane in enumerate(scans.body(4)):
        scans.save(tmp_path / f"in/{k}.dcm", scans.dicom(plane, (0, 0, 3 * k), orientation=(1, 0, 0, 0, c, -s)))
    (series,) = discover([tmp_path / "in"])
    write_nifti(tmp_path / "lung.nii.gz", series, lung_mask_of(known.series(series)))
    written = nibabel.load(tmp_path / "lung.nii.gz")
    np.testing.assert_allclose(written.get_sform(coded=True)[0], series.source_affine_ras, atol=1e-4)
    assert written.get_qform(coded=True)[1] == 0, "a quaternion can't hold it"


def test_a_summary_tells_none_from_unknown(tmp_path):
    write_summary(tmp_path / "s.csv", [SummaryRow("a", "done", slices=3, lesions=0, lesion_ml=0.0, image_class=None)])
    with open(tmp_path / "s.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["slices"], row["lesions"], row["lesion_ml"], row["image_class"]) == ("3", "0", "0.0", "")
