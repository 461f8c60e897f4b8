"""The data of the model zoo: two public sets of CT with lesion masks made one, split by patient, and phantoms."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..data.cncb import prepare_lesions
from ..data.coco_json import read_coco
from ..data.datasets import prepared_json
from ..data.files import sha256_of, write_json
from ..data.pairing import pair_cncb
from ..data.phantom import write_phantoms
from ..data.splits import split_by_patients
from ..errors import UserError

SET = "zoo"
"""Name of the merged set: its datasets are ``zoo_merge_train`` and ``zoo_merge_val``."""
VALIDATION = {"radiopaedia": ("1", "4"), "coronacases": ("6", "7")}
"""Patients of each source that validate; the others train."""
PHANTOMS = {"patients_per_class": 28, "slices_per_patient": 10, "size": 384, "seed": 1, "val_fraction": 0.25}
"""The phantoms of ``make demo``."""
FACTS = "zoo.json"
_PHANTOMS_MADE = "phantom.json"
"""Settings of the phantoms that this has made; empty while it makes them."""
_ABOUT = "Lesions in chest CT: "
_SPLITS = ("train", "val")


def prepare_data(source: Path, output: Path, *, workers: int = 0, phantoms: dict[str, Any] | None = None) -> list[str]:
    """Make everything that the zoo's trainings read: ``$DETECTRON2_DATASETS`` is to be ``output`` then.

    Images stay in ``source``; jsons in ``output`` lead to them by a path relative to themselves. ``zoo.json`` keeps
    what the sets hold. What was made before is made anew, phantoms apart, if they are the same; sets that were not
    made by this stay as they are, and are refused before anything is written.

    Args:
        source: holds ``radiopaedia/``, ``coronacases/`` (both with ``ct_lesion_seg/image`` and ``mask``) and, if the
            classifier is to be trained, ``covid_ct/`` with ``split.csv``.
        workers: processes that help making phantoms.
        phantoms: replaces :data:`PHANTOMS`.

    Returns:
        What was made, a line a set.

    Raises:
        UserError: a source is missing or damaged; ``output`` can't be written to, or holds sets, phantoms or figures
            of another origin.
    """
    for name in VALIDATION:
        if not (source / name).is_dir():
            raise UserError(f"--source {source} has no folder {name}; datasets/README.md says where the data is had.")
    _check_sets(output)
    _check_phantoms(output)
    lines = []
    for name, patients in VALIDATION.items():
        pairing = pair_cncb(source / name)
        splits = split_by_patients(pairing.pairs, patients)
        words = f"{_ABOUT}{name}"
        made = prepare_lesions(pairing, splits, output / name, mask_types=["merge"], description=words)
        lines += made.warnings()
    facts: dict[str, Any] = {"datasets": {}}
    for split in _SPLITS:
        merged = merge_sets({name: prepared_json(name, "merge", split, output) for name in VALIDATION}, output, split)
        path = prepared_json(SET, "merge", split, output)
        write_json(path, merged)
        facts["datasets"][f"{SET}_merge_{split}"] = described(merged)
        lines.append(f"{path}: {_in_words(facts['datasets'][f'{SET}_merge_{split}'])}")
    if (source / "covid_ct" / "split.csv").is_file():
        _link(source / "covid_ct", output / "covid_ct")
        lines.append(f"{output / 'covid_ct'}: the figures of COVID-CT, where they are")
    figures = output / "covid_ct" / "split.csv"
    if figures.is_file():
        facts["datasets"] |= {f"covid_ct_{split}": {"sha256": sha256_of(figures)} for split in _SPLITS}
    lines.append(_make_phantoms(output, phantoms or PHANTOMS, workers, facts))
    write_json(output / FACTS, facts)
    return lines


def merge_sets(jsons: dict[str, Path], output: Path, split: str) -> dict[str, Any]:
    """One COCO json of several: images and patients are called ``<source>/<name>``, ids are given anew.

    Args:
        jsons: prepared json of each source, made in ``output`` by :func:`~d2_covid.data.cncb.prepare_lesions`.
        split: which; for its folder.

    Raises:
        UserError: a json can't be read, or their categories differ.
    """
    contents = {name: read_coco(path) for name, path in jsons.items()}
    categories = next(iter(contents.values()))["categories"]
    roots = {name: (jsons[name].parent / content["info"]["image_root"]).resolve() for name, content in contents.items()}
    folder = prepared_json(SET, "merge", split, output).parent.resolve()
    common = Path(os.path.commonpath(roots.values()))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, content in contents.items():
        if content["categories"] != categories:
            raise UserError(f"{jsons[name]} has other categories than the sets before it; they can't be merged.")
        prefix = roots[name].relative_to(common).as_posix()
        ids = {}
        for image in content["images"]:
            ids[image["id"]] = len(images) + 1
            file_name, patient = f"{prefix}/{image['file_name']}", f"{name}/{image['patient_id']}"
            images.append({**image, "id": ids[image["id"]], "file_name": file_name, "patient_id": patient})
        for annotation in content["annotations"]:
            at = {"id": len(annotations) + 1, "image_id": ids[annotation["image_id"]]}
            annotations.append({**annotation, **at})
    info = {
        **{key: contents[next(iter(contents))]["info"][key] for key in ("mask_type", "min_area", "version")},
        "description": f"{_ABOUT}{' and '.join(contents)}, merged masks, {split}",
        "image_root": Path(os.path.relpath(common, folder)).as_posix(),
    }
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def described(content: dict[str, Any]) -> dict[str, Any]:
    """Counts of a COCO json, its patients, and a hash of what it holds that is the same wherever the files lie."""
    with_lesion = {annotation["image_id"] for annotation in content["annotations"]}
    held = [content["images"], content["annotations"], content["categories"]]
    return {
        "slices": len(content["images"]),
        "slices_without_lesion": len(content["images"]) - len(with_lesion),
        "lesions": len(content["annotations"]),
        "patients": sorted({image["patient_id"] for image in content["images"]}),
        "sha256": hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest(),
    }


def read_facts(data: Path) -> dict[str, Any]:
    """What :func:`prepare_data` noted of the sets in ``data``.

    Raises:
        UserError: the data has not been made.
    """
    try:
        facts = json.loads((data / FACTS).read_text(encoding="utf-8"))
        facts["datasets"]  # noqa: B018  (what the runner reads)
    except FileNotFoundError as error:
        command = f"tools/model_zoo.py data --source DIR --output {data}"
        message = f"There is no {data / FACTS}: make the data with `{command}`."
        raise UserError(message) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{data / FACTS} is damaged; make the data anew with `tools/model_zoo.py data`.") from error
    return facts


def _make_phantoms(output: Path, settings: dict[str, Any], workers: int, facts: dict[str, Any]) -> str:
    folder = output / "phantom"
    facts["phantoms"] = settings
    same = _phantoms_before(output) == settings and prepared_json("phantom", "merge", "val", output).is_file()
    if not same:
        write_json(output / _PHANTOMS_MADE, {})
        write_phantoms(folder, **settings, workers=workers, overwrite=True)
    write_json(output / _PHANTOMS_MADE, settings)
    for split in _SPLITS:
        content = read_coco(prepared_json("phantom", "merge", split, output))
        facts["datasets"][f"phantom_merge_{split}"] = described(content)
    counts = [_in_words(facts["datasets"][f"phantom_merge_{split}"]) for split in _SPLITS]
    return f"{folder}: {'made before, ' if same else ''}{' and '.join(counts)}"


def _check_sets(output: Path) -> None:
    for name in (*VALIDATION, SET):
        ours = [prepared_json(name, "merge", split, output) for split in _SPLITS]
        there = [path for path in ours if path.is_file()]
        # Of a folder without these, what else it has tells whose it is.
        for path in there or sorted(ours[0].parent.glob("*.json")):
            if not _made_here(path):
                raise UserError(
                    f"{path.parent.parent} is there and holds another set; move it, or give another --output."
                )


def _made_here(json_file: Path) -> bool:
    try:
        info = read_coco(json_file).get("info", {})
        # datasets/prepare_cncb.py has the same words, and always notes the source.
        return info["description"].startswith(_ABOUT) and not info.get("source")
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def _check_phantoms(output: Path) -> None:
    folder = output / "phantom"
    if _phantoms_before(output) is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is there and holds other phantoms; move it, or give another --output.")


def _phantoms_before(output: Path) -> dict[str, Any] | None:
    """Settings of the phantoms that an earlier call made in ``output``; None: there was none, or nobody knows."""
    for name, key in ((_PHANTOMS_MADE, None), (FACTS, "phantoms")):  # earlier versions noted them in the latter alone
        try:
            found = json.loads((output / name).read_text(encoding="utf-8"))
            return dict(found if key is None else found[key])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return None


def _link(target: Path, link: Path) -> None:
    if link.exists() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        if _same_list(target, link):  # a copy, where links can't be made
            return
        raise UserError(f"{link} is there and holds something else than {target}; move it, or give another --output.")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    except OSError:  # a file system or a user without links
        shutil.copytree(target, link)


def _same_list(one: Path, other: Path) -> bool:
    lists = one / "split.csv", other / "split.csv"
    return all(path.is_file() for path in lists) and sha256_of(lists[0]) == sha256_of(lists[1])


def _in_words(facts: dict[str, Any]) -> str:
    return f"{facts['slices']} slices of {len(facts['patients'])} patients, {facts['lesions']} lesions"
