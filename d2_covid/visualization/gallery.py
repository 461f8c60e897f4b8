"""From datasets and predictions to named panels, one a slice."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ..data.mappers import check_size
from ..data.pairing import IMAGE_SUFFIXES, natural_key
from ..data.preprocessing import read_slice
from ..errors import UserError
from ..evaluation.slice_instances import checked_rle
from .instances import InstanceArrays, from_coco_results, from_dataset_dict
from .panels import slice_panel


@dataclass(frozen=True)
class Panel:
    """A drawn slice: the stem of its file name, its caption's words, and the picture, (h, w, 3) uint8."""

    name: str
    text: str
    image: np.ndarray


def sample(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """At most ``limit`` of the items, drawn from ``seed``, in the order they came in; all where ``limit`` is None."""
    if limit is None or limit >= len(items):
        return list(items)
    drawn = np.random.default_rng(seed).choice(len(items), size=limit, replace=False)
    return [items[i] for i in sorted(drawn)]


def dataset_panels(
    records: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    predict: Callable[[Mapping[str, Any], np.ndarray], InstanceArrays] | None = None,
    score_threshold: float = 0.5,
) -> Iterator[Panel | UserError]:
    """Panels of slices with ground truth, and beside it predictions.

    Args:
        records: lesion dataset dicts.
        class_names: names of the K lesion classes.
        predict: from a dataset dict and its slice, (H, W) uint8, to what was predicted; None: ground truth alone.
        score_threshold: predictions below it are left out.

    Yields:
        The slice's panel, or, where it can't be read or has another size than its dataset dict says, the error.
    """
    patients = [record.get("patient_id", "") for record in records]
    names = [Path(record["file_name"]) for record in records]
    stems = unique_stems([f"{p}_{name.stem}" if p else name.stem for p, name in zip(patients, names)])
    for record, patient, name, stem in zip(records, patients, names, stems):
        try:
            image = read_slice(record["file_name"])
            check_size(dict(record), *image.shape)
        except UserError as error:
            yield error
            continue
        predictions = None if predict is None else predict(record, image).above(score_threshold)
        text = f"patient {patient} · {name.name}" if patient else name.name
        yield Panel(stem, text, slice_panel(image, class_names, from_dataset_dict(record), predictions, name=text))


def read_predictions(
    path: str | Path, records: Sequence[Mapping[str, Any]], class_of: Mapping[int, int]
) -> Callable[[Mapping[str, Any], np.ndarray], InstanceArrays]:
    """Predictions of a ``coco_instances_results.json``, looked up by slice; one without a box gets its mask's.

    Args:
        records: dataset dicts of the whole dataset that was evaluated.
        class_of: category id of the json -> contiguous class.

    Returns:
        What :func:`dataset_panels` takes as ``predict``.

    Raises:
        UserError: the file can't be read, is none of that kind, or belongs to another dataset; or a prediction has no
            score, or neither box nor mask.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        by_slice = defaultdict(list)
        for result in results:
            by_slice[result["image_id"]].append(result)
        categories = {result["category_id"] for result in results}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; an evaluation writes it, as coco_instances_results.json.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no predictions; give an evaluation's coco_instances_results.json.") from error
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in records}
    strange = set(by_slice) - set(sizes)
    if strange or categories - set(class_of):
        what = f"slice {sorted(strange, key=str)[0]}" if strange else f"category {min(categories - set(class_of))}"
        raise UserError(f"{path} has predictions for {what}, which the dataset lacks; name the dataset it was made on.")
    for result in results:
        lacking = _lacking(result)
        if lacking:
            what = f"a prediction for slice {result['image_id']} has no {lacking}"
            raise UserError(f"{path}: {what}; give an evaluation's coco_instances_results.json.")
        if "segmentation" not in result:
            continue
        try:
            rle = checked_rle(
                result["segmentation"], *sizes[result["image_id"]], f"A mask for slice {result['image_id']}"
            )
        except UserError as error:
            raise UserError(f"{path} does not fit the dataset: {error} Name the dataset it was made on.") from error
        if result.get("bbox") is None:
            result["bbox"] = coco_mask.toBbox(rle).tolist()
    return lambda record, image: from_coco_results(by_slice[record["image_id"]], *image.shape, class_of)


def _lacking(result: Mapping[str, Any]) -> str:
    """What a COCO result can't be drawn without and has not; "" for one that is whole."""
    if result.get("score") is None:
        return "score"
    return "box and no mask" if result.get("bbox") is None and "segmentation" not in result else ""


def find_slices(folder: str | Path) -> list[Path]:
    """Image files in a folder and the folders below it, in natural order; none that is hidden, or that storage devices
    add (``@eaDir``).

    Raises:
        UserError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with images in it.")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith((".", "@")) for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def unique_stems(stems: Iterable[str]) -> list[str]:
    """The stems, as file names on any system; one that came before gets a number."""
    seen: set[str] = set()
    unique = []
    for stem in stems:
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)
        name, number = stem, 2
        while name.lower() in seen:
            name, number = f"{stem}_{number}", number + 1
        seen.add(name.lower())
        unique.append(name)
    return unique
