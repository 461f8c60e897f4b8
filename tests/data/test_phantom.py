"""The phantom generator: what its slices are, how the classes differ, and what it writes."""

import csv
import hashlib
import runpy
from functools import cache
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.files import write_json
from d2_covid.data.lesion_masks import MASK_TYPES, lesion_components, read_mask
from d2_covid.data.phantom import folder as phantom_folder
from d2_covid.data.phantom import phantom_patient, write_phantoms
from d2_covid.data.phantom.canvas import Canvas, ellipse
from d2_covid.data.preprocessing import read_slice, window_to_uint8
from d2_covid.errors import UserError

import cv2
import numpy as np
import pytest

SIZE, SLICES, SEEDS = 192, 6, range(40, 48)
PIXEL_MM2 = (360 / SIZE) ** 2  # about


@cache
def patient(seed: int, image_class: int, num_slices: int = SLICES, size: int = SIZE):
    return phantom_patient(seed, image_class, num_slices, size)


def digest(slices) -> str:
    arrays = [array for s in slices for array in (s.image, s.mask, s.hounsfield)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def lesions(slices, min_mm2: float = 60):
    """All merged lesions of a patient's slices, as (slice, component)."""
    least = round(min_mm2 / PIXEL_MM2)
    return [(s, lesion) for s in slices for lesion in lesion_components(s.mask, "merge", least)[0]]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_small(root: Path, **changes):
    options = dict(patients_per_class=2, slices_per_patient=3, seed=3, size=128, val_fraction=0.5, progress=False)
    return write_phantoms(root, **{**options, **changes})


# Slices


def test_same_seed_same_bytes_with_any_number_of_threads():
    here = digest(phantom_patient(7, 2, 2, 128))
    threads = cv2.getNumThreads()
    try:
        for number in (1, 4):
            cv2.setNumThreads(number)
            assert digest(phantom_patient(7, 2, 2, 128)) == here
    finally:
        cv2.setNumThreads(threads)


def test_seeds_and_classes_differ():
    made = [digest(patient(seed, image_class)) for seed in (40, 41) for image_class in (0, 1, 2)]
    assert len(set(made)) == 6


def test_the_same_seed_is_the_same_person_in_every_class():
    healthy, ill = patient(40, 0), patient(40, 2)
    for a, b in zip(healthy, ill, strict=True):
        assert ((a.mask > 0) == (b.mask > 0)).mean() > 0.995  # a lesion may cover a bronchus
        outside = b.mask == 0
        assert np.abs(a.image[outside].astype(int) - b.image[outside]).mean() < 1


@pytest.mark.parametrize("image_class", (0, 1, 2))
@pytest.mark.parametrize("seed", (40, 41, 42))
def test_slices_are_what_they_say(seed, image_class):
    slices = patient(seed, image_class)
    assert len(slices) == SLICES
    for s in slices:
        assert s.image.shape == s.mask.shape == s.hounsfield.shape == (SIZE, SIZE)
        assert (s.image.dtype, s.mask.dtype, s.hounsfield.dtype) == (np.uint8, np.uint8, np.int16)
        assert set(np.unique(s.mask)) <= {0, 1, 2, 3}
        lungs = s.mask > 0
        assert 0.003 < lungs.mean() < 0.4
        # The lungs are dark and the body around them isn't; both sides of the picture have one.
        assert s.hounsfield[s.mask == 1].mean() < -600
        near, wider = (cv2.dilate(lungs.astype(np.uint8), np.ones((n, n))) for n in (5, 9))
        border = wider - near
        assert s.hounsfield[border > 0].mean() > -200
        columns = lungs.sum(0)
        assert min(columns[: SIZE // 2].sum(), columns[SIZE // 2 :].sum()) > 0.15 * columns.sum()


@pytest.mark.parametrize("seed", (40, 43))
def test_lesions_lie_in_the_lungs_of_the_same_person(seed):
    """A control's mask is the patient's lungs: every lesion is inside them, and bronchi within consolidation aside."""
    for image_class in (1, 2):
        for healthy, ill in zip(patient(seed, 0), patient(seed, image_class), strict=True):
            closed = cv2.morphologyEx((healthy.mask > 0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
            assert not ((ill.mask > 1) & (closed == 0)).any()


def test_the_image_is_the_windowed_hounsfield_units():
    s = patient(40, 1)[3]
    narrow, right, wide = (
        np.abs(window_to_uint8(s.hounsfield, -600, width).astype(int) - s.image).mean() for width in (750, 1500, 3000)
    )
    assert right < min(narrow, wide) and right < 12
    order = np.argsort(s.hounsfield, axis=None, kind="stable")
    assert (np.diff(s.image.reshape(-1)[order].astype(int)) >= 0).all()  # brighter where denser, everywhere


def test_ground_glass_is_denser_than_lung_and_consolidation_denser_still():
    values = {1: [], 2: [], 3: []}
    for seed in SEEDS:
        for image_class in (1, 2):
            for s in patient(seed, image_class):
                for value, found in values.items():
                    found.append(s.hounsfield[s.mask == value])
    lung, ggo, consolidation = (np.median(np.concatenate(values[value])) for value in (1, 2, 3))
    assert -900 < lung < -760
    assert lung + 120 < ggo < -350
    assert -100 < consolidation < 120


def test_neighbouring_slices_belong_together():
    close = phantom_patient(44, 2, 120, 64)
    same = [np.mean((a.mask > 0) == (b.mask > 0)) for a, b in zip(close[40:80], close[41:81], strict=True)]
    assert min(same) > 0.97
    pairs = [(a.mask > 1, b.mask > 1) for a, b in zip(close[:-1], close[1:], strict=True)]
    assert np.median([(a & b).sum() / a.sum() for a, b in pairs if a.sum() > 20]) > 0.8


# Classes


def test_controls_have_no_lesion():
    assert not any((s.mask > 1).any() for seed in SEEDS for s in patient(seed, 0))


@pytest.mark.parametrize("image_class", (1, 2))
def test_every_patient_shows_a_lesion_and_some_slices_none(image_class):
    without = 0
    for seed in SEEDS:
        slices = patient(seed, image_class)
        assert lesions(slices, 100), seed
        without += sum(not (s.mask > 1).any() for s in slices)
    assert 0.05 < without / (SLICES * len(SEEDS)) < 0.65


@pytest.mark.parametrize("num_slices", (1, 2))
@pytest.mark.parametrize("image_class", (1, 2))
def test_a_short_series_shows_a_lesion_too(image_class, num_slices):
    for seed in range(6):
        assert any((s.mask > 1).any() for s in patient(seed, image_class, num_slices, 128)), seed


def test_covid_has_more_and_smaller_lesions_than_pneumonia():
    found = {c: [lesions(patient(seed, c)) for seed in SEEDS] for c in (1, 2)}
    per_slice = {c: np.mean([len(f) / len({id(s) for s, _ in f}) for f in found[c]]) for c in found}
    area = {c: np.median([lesion.area for f in found[c] for _, lesion in f]) for c in found}
    assert per_slice[1] < 1.5 < 1.8 < per_slice[2]
    assert area[1] > 2 * area[2]


def test_covid_is_bilateral_and_pneumonia_mostly_is_not():
    def bilateral(seed: int, image_class: int) -> bool:
        lesion = np.sum([s.mask > 1 for s in patient(seed, image_class)], axis=(0, 1))
        left, right = lesion[: SIZE // 2].sum(), lesion[SIZE // 2 :].sum()
        return min(left, right) > 0.1 * (left + right)

    assert sum(bilateral(seed, 2) for seed in SEEDS) >= len(SEEDS) - 1
    assert sum(bilateral(seed, 1) for seed in SEEDS) <= len(SEEDS) / 2


def test_covid_lies_nearer_to_the_pleura():
    def depth(image_class: int) -> float:
        values = []
        for seed in SEEDS:
            for s in patient(seed, image_class):
                inside = cv2.distanceTransform((s.mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
                values.extend(inside[lesion.mask].mean() for t, lesion in lesions([s]) if t is s)
        return float(np.mean(values))

    assert depth(2) < 0.75 * depth(1)


def test_pneumonia_is_more_often_consolidated():
    def share(image_class: int) -> float:
        masks = np.stack([s.mask for seed in SEEDS for s in patient(seed, image_class)])
        return (masks == 3).sum() / (masks > 1).sum()

    assert share(2) < 0.4 < share(1)


def test_some_lesions_are_tiny_and_some_touch_the_border_of_the_lung():
    tiny = touching = 0
    for seed in (40, 41, 42, 45):
        for s in phantom_patient(seed, 2, 5, 512):
            kept, dropped = lesion_components(s.mask, "merge")
            tiny += len(dropped)
            lung = (s.mask > 0).astype(np.uint8)
            edge = lung - cv2.erode(lung, np.ones((3, 3), np.uint8))
            touching += sum((edge[lesion.mask] > 0).any() for lesion in kept)
    assert tiny > 0 and touching > 5


def test_masks_are_outlines_and_not_confetti():
    """Few components, and little of a lesion is border."""
    for seed in SEEDS:
        for image_class in (1, 2):
            for s in patient(seed, image_class):
                count, _ = cv2.connectedComponents((s.mask > 1).astype(np.uint8), connectivity=8)
                assert count - 1 <= 10
                for _, lesion in lesions([s], 300):
                    hull = cv2.convexHull(np.argwhere(lesion.mask).astype(np.int32))
                    assert lesion.area > 0.45 * cv2.contourArea(hull)


@pytest.mark.parametrize(
    ("arguments", "says"),
    (
        ((0, 3, 4), "class is 0, 1 or 2, not 3"),
        ((0, 0, 0), "0 slices"),
        ((-1, 0, 1), "seed -1"),
        ((0, 0, 1, 32), "32 pixels"),
    ),
)
def test_arguments_out_of_range(arguments, says):
    with pytest.raises(UserError, match=says):
        phantom_patient(*arguments)


def test_canvas_grid_undoes_what_pixels_does():
    bends = np.array([[0.02, 0.01, 1.0, 2.0, -1.5], [0.05, -0.06, 2.0, 0.5, 0.6]])
    canvas = Canvas(128, 340.0, 3.0, (5.0, -8.0), bends)
    x, y = canvas.grid()
    rows, columns = np.mgrid[0:128:7, 0:128:7]
    back = canvas.pixels(np.stack([x[rows, columns].ravel(), y[rows, columns].ravel()], 1).astype(float))
    assert np.abs(back - np.stack([columns.ravel(), rows.ravel()], 1)).max() < 0.15


def test_an_organ_outside_the_picture_changes_nothing():
    canvas = Canvas(64, 100.0, 0.0, (0.0, 0.0), np.zeros((0, 5)))
    image = np.zeros((64, 64), np.float32)
    canvas.paint(image, ellipse(500, 500, 20, 20), 100)
    assert not image.any()
    canvas.paint(image, ellipse(0, 0, 10, 10), 100)
    assert 10 < np.sqrt(image.sum() / 100 / np.pi) * 100 / 64 < 11.5  # a smooth edge adds up to a pixel


# Folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets") / "phantom"
    return root, write_small(root, slices_per_patient=4)


def test_layout(written):
    root, made = written
    images = sorted(path.relative_to(root / "image").with_suffix("") for path in (root / "image").rglob("*.jpg"))
    masks = sorted(path.relative_to(root / "mask").with_suffix("") for path in (root / "mask").rglob("*.png"))
    assert images == masks and len(images) == 3 * 2 * 4 == made.slices
    assert [path.name for path in root.parent.iterdir()] == ["phantom"]  # nothing unfinished is left beside it
    for name in images:
        image, mask = read_slice(root / "image" / f"{name}.jpg"), read_mask(root / "mask" / f"{name}.png")
        assert image.shape == mask.shape == (128, 128)


def test_splits_are_by_patient_and_balanced(written):
    root, made = written
    rows = list(csv.DictReader((root / "splits.csv").open()))
    assert len({row["patient_id"] for row in rows}) == len(rows) == 6
    for name in ("control", "pneumonia", "covid"):
        assert sorted(row["split"] for row in rows if row["patient_id"].startswith(name)) == ["train", "val"]
    assert made.patients == {"train": 3, "val": 3}


def test_class_list_shows_what_it_says(written):
    root, made = written
    splits = {row["patient_id"]: row["split"] for row in csv.DictReader((root / "splits.csv").open())}
    lines = (root / "classes.csv").read_text().splitlines()
    assert lines[0] == "file,label,patient_id,scan_id,split"
    rows = list(csv.DictReader(lines))
    areas = {p.relative_to(root / "mask"): int((read_mask(p) > 1).sum()) for p in (root / "mask").rglob("*.png")}
    for row in rows:
        own = Path(row["file"]).with_suffix(".png")
        assert areas[own] >= 0.3 * max(area for path, area in areas.items() if path.parent == own.parent)
        mask = read_mask(root / "mask" / Path(row["file"]).with_suffix(".png"))
        assert (root / "image" / row["file"]).is_file()
        assert row["file"].startswith(row["patient_id"] + "/") and row["split"] == splits[row["patient_id"]]
        assert (row["label"] == "0") == row["patient_id"].startswith("control")
        assert bool(lesion_components(mask, "merge")[0]) == (row["label"] != "0")
    assert {row["label"] for row in rows} == {"0", "1", "2"}
    assert sum(sum(counts) for counts in made.listed.values()) == len(rows)


@pytest.mark.parametrize("mask_type", MASK_TYPES)
@pytest.mark.parametrize("split", ("train", "val"))
def test_jsons_are_ready_for_training(written, mask_type, split):
    root, _ = written
    loaded = load_lesion_json(root / "annotations" / f"{mask_type}_{split}.json")
    assert len(loaded.dicts) == 12 and loaded.classes == MASK_TYPES[mask_type]
    assert len({d["patient_id"] for d in loaded.dicts}) == 3


def test_the_same_options_give_the_same_files(written, tmp_path):
    root, _ = written
    write_small(tmp_path / "phantom", slices_per_patient=4, workers=2)
    assert digests(tmp_path / "phantom") == digests(root)


def test_another_seed_gives_other_files(tmp_path):
    write_small(tmp_path / "a", slices_per_patient=1)
    write_small(tmp_path / "b", slices_per_patient=1, seed=4)
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert a.keys() == b.keys() and all(a[name] != b[name] for name in a if name.endswith(".jpg"))


def test_without_validation(tmp_path):
    made = write_small(tmp_path / "phantom", patients_per_class=1, slices_per_patient=1, val_fraction=0)
    assert made.patients == {"train": 3}
    assert sorted(path.name for path in (tmp_path / "phantom" / "annotations").iterdir()) == [
        "both_train.json", "ggo_train.json", "merge_train.json",
    ]  # fmt: skip


def test_a_folder_in_use_is_left_alone(tmp_path):
    root = tmp_path / "phantom"
    root.mkdir()
    (root / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"phantom is not empty, and no set .* holds mine\.txt; take another"):
            write_small(root, overwrite=overwrite)
    assert [path.name for path in root.iterdir()] == ["mine.txt"]


def test_only_a_set_of_phantoms_and_nothing_else_is_replaced(tmp_path):
    root = tmp_path / "phantom"
    smallest = dict(patients_per_class=1, slices_per_patient=1, size=64, val_fraction=0)
    write_small(root, **smallest)
    first = digests(root)
    with pytest.raises(UserError, match=r"holds a set of phantoms; .*--overwrite"):
        write_small(root, **smallest)
    (root / "scan.nii").touch()
    with pytest.raises(UserError, match=r"no set of phantoms: it holds scan\.nii; take another folder\.$"):
        write_small(root, **smallest, overwrite=True)
    (root / "scan.nii").unlink()
    # A hidden folder, such as that of a repository, holds more than a hidden file.
    (root / ".git").mkdir()
    with pytest.raises(UserError, match=r"it holds \.git; take another folder\.$"):
        write_small(root, **smallest, overwrite=True)
    (root / ".git").rmdir()
    (root / "image" / "covid-001" / "000.jpg").write_bytes(b"another")
    write_small(root, **smallest, overwrite=True)
    assert digests(root) == first


def test_what_file_managers_leave_is_no_part_of_a_set_and_stays(tmp_path):
    root = tmp_path / "phantom"
    smallest = dict(patients_per_class=1, slices_per_patient=1, size=64, val_fraction=0)
    root.mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / name).write_text(name)
    write_small(root, **smallest)
    first = digests(root)
    write_small(root, **smallest, overwrite=True)
    assert digests(root) == first and (root / "Thumbs.db").read_text() == "Thumbs.db"


def test_what_is_left_of_a_set_is_made_whole(tmp_path):
    root = tmp_path / "phantom"
    smallest = dict(patients_per_class=1, slices_per_patient=1, size=64, val_fraction=0)
    write_small(root, **smallest)
    first = digests(root)
    for number, lost in enumerate(["classes.csv", "image", "annotations/both_train.json"]):
        (root / lost).rename(tmp_path / f"{number}")
    (root / "annotations" / "ggo_train.json").write_text("{")
    with pytest.raises(UserError, match=r"holds a set of phantoms; .*--overwrite"):
        write_small(root, **smallest)
    write_small(root, **smallest, overwrite=True)
    assert digests(root) == first


@pytest.mark.parametrize("info", [{"source": "/data/cncb"}, {}, None, "absent"])
def test_another_set_of_the_same_names_is_left_alone(tmp_path, info):
    root = tmp_path / "phantom"
    for name in ("image", "mask", "annotations"):
        (root / name).mkdir(parents=True)
    for name in ("splits.csv", "classes.csv"):
        (root / name).write_text("mine")
    if info != "absent":
        content = {"info": info, "images": [{"id": 1}], "annotations": [], "categories": []}
        write_json(root / "annotations" / "merge_train.json", content)
    before = digests(root)
    with pytest.raises(UserError, match=r"no set of phantoms: no json in its annotations/ says so; take another"):
        write_small(root, overwrite=True)
    assert digests(root) == before


def test_nothing_is_left_of_a_set_that_failed(tmp_path, monkeypatch):
    root = tmp_path / "phantom"
    write_small(root, slices_per_patient=1)
    before = digests(root)
    made = []

    def fails_at_the_third(job):
        made.append(job)
        if len(made) == 3:
            raise KeyboardInterrupt
        return phantom_patient(job, 0, 1, 64) and []

    monkeypatch.setattr(phantom_folder, "_write_patient", lambda job: fails_at_the_third(1))
    with pytest.raises(KeyboardInterrupt):
        write_small(root, overwrite=True)
    assert digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


@pytest.mark.parametrize(
    ("changes", "says"),
    (
        ({"patients_per_class": 0}, "not 0 and 3"),
        ({"patients_per_class": 1}, "can't be split"),
        ({"size": 32}, "too small"),
        ({"seed": -1}, "not -1"),
        ({"workers": -1}, "not 3 and -1"),
        ({"val_fraction": 1.0}, "not 1.0"),
    ),
)
def test_options_out_of_range_say_so_before_anything_is_made(tmp_path, changes, says):
    with pytest.raises(UserError, match=says) as caught:
        write_small(tmp_path / "phantom", **changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        write_small(tmp_path / "file")
    with pytest.raises(UserError, match="Cannot write .*phantom: "):
        write_small(tmp_path / "file" / "phantom")


def test_command(repository, tmp_path, capsys):
    main = runpy.run_path(str(repository / "datasets" / "prepare_phantoms.py"))["main"]
    options = ["--output", str(tmp_path / "phantom"), "--patients", "2", "--slices", "2", "--size", "96"]
    assert run_command(lambda: main(options)) == 0
    done = capsys.readouterr()
    assert "12 slices of 6 phantom patients (3 train, 3 val)" in done.out
    assert "phantom_merge_train" in done.out and "Making phantoms" in done.err
    assert run_command(lambda: main(options)) == 2
    again = capsys.readouterr()
    assert again.out == "" and again.err.startswith("error: ")
    assert again.err.count("\n") == 1 and "--overwrite" in again.err
