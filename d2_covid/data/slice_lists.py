"""Lists of slices and their image class: COVIDx-CT's split files, the paper's list of 3,000, and plain CSV.

Pure parsers from text to :class:`ListedSlice`; :mod:`.slices` finds the images, :mod:`.slice_datasets` registers the
lists.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import UserError
from .patient_ids import stated_id

IMAGE_CLASSES = ("control", "common pneumonia", "COVID-19")
"""The paper's classes; COVIDx-CT numbers them the same way."""

# Other names of the three classes, as data sets write them.
_ALIASES = {
    "normal": "control",
    "healthy": "control",
    "cp": "common pneumonia",
    "cap": "common pneumonia",
    "pneumonia": "common pneumonia",
    "ncp": "COVID-19",
    "covid": "COVID-19",
    "covid19": "COVID-19",
}

_COLUMNS = ("file", "label", "patient_id", "scan_id", "split")

# CNCB's class folders, by the class number that the paper's list puts in their place.
_CNCB_FOLDERS = ("Normal", "CP", "NCP")

# How the sources of COVIDx-CT (1, 2A, 2B, 3A, 3B) name patient, scan and slice. The first pattern that fits decides.
# COVID-19-20 took its volumes from the TCIA set, so "volume-covid19-A-0003" is one patient in both.
_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<scan>(?P<patient>(?:Normal|CP|NCP)_\d+)_\d+)_\d+",  # CNCB
        r"(?P<scan>(?P<patient>HUST-Patient\d+))-\d+",  # iCTCF
        r"(?P<scan>(?P<patient>LIDC-IDRI-\d+)-[\d.]+)-\d+",
        r"(?P<scan>(?P<patient>volume-covid19-A-\d+)(?:_ct)?)-\d+",  # TCIA, COVID-19-20
        r"(?P<scan>(?P<patient>coronacases_\d+))-\d+",
        r"(?P<scan>(?P<patient>radiopaedia_\d+_\d+)_\d+)-\d+",  # COVID-19 CT lung and infection segmentation
        r"(?P<scan>(?P<patient>radiopaedia-\d+)-\d+-\d+)-\d+",
        r"(?P<scan>[^_]+_(?P<patient>patient\d+)_SR_\d+)_IM\d+",  # COVID-CTSet
        r"(?P<scan>(?P<patient>COVIDCTMD-\w+))-\w+",
        r"(?P<scan>(?P<patient>STOIC-\d+))-\d+",
        r"(?P<scan>(?P<patient>A\d{6})-.+)-\d+",  # Stony Brook
        r"(?P<scan>(?P<patient>study_\d+))-\d+",  # MosMedData
    )
)


@dataclass(frozen=True)
class ListedSlice:
    """One line of a list.

    Attributes:
        file: as listed, relative to the image folder.
        image_class: number of its class.
        patient_id, scan_id: "" where the list doesn't say.
        split: "" where the list has no such column.
        line: number of its line in the list, from 1.
    """

    file: str
    image_class: int
    patient_id: str = ""
    scan_id: str = ""
    split: str = ""
    line: int = 0


def covidx_ids(file: str) -> tuple[str, str]:
    """Patient and scan that a COVIDx-CT file name tells; two empty strings for a name of no known source.

    >>> covidx_ids("NCP_96_1328_0035.png")
    ('NCP_96', 'NCP_96_1328')
    """
    stem = PurePosixPath(cncb_file(file)).stem
    for pattern in _NAMES:
        if match := pattern.fullmatch(stem):
            return match["patient"], match["scan"]
    return "", ""


def cncb_file(file: str) -> str:
    """The COVIDx-CT name of a file of the paper's list, which has the class number for CNCB's folder
    (``0_1728_1013_0023.png`` is ``Normal_1728_1013_0023.png``); any other name as it is."""
    path = PurePosixPath(file)
    match = re.fullmatch(r"([012])(_\d+_\d+_\d+\.\w+)", path.name)
    return str(path.with_name(_CNCB_FOLDERS[int(match[1])] + match[2])) if match else file


def class_number(label: str, image_classes: Sequence[str]) -> int | None:
    """Number of a class given by name, whatever its case, or by number; None if it is neither.

    Where a class is called by a number, as CO-RADS 1 to 5, numbers are names alone: 1 might be the second class too.
    """
    label = label.strip()
    if label in image_classes:
        return image_classes.index(label)
    if re.fullmatch(r"\d+", label):
        taken = _called_by_number(image_classes) or int(label) >= len(image_classes)
        return None if taken else int(label)
    names = [name.casefold() for name in image_classes]
    known = _ALIASES.get(label.casefold(), label).casefold()
    for name in (label.casefold(), known):
        if name in names:
            return names.index(name)
    return None


def remark_on_first(image_classes: Sequence[str]) -> str | None:
    """What to say where names tell that the first class is not the one without disease: a known disease, or a later
    control. None: they don't."""
    numbers = [None if name.isdecimal() else class_number(name, IMAGE_CLASSES) for name in image_classes]
    if not any(numbers[:1]) and 0 not in numbers[1:]:
        return None
    return (
        f"Of the image classes {', '.join(image_classes)} the first, {image_classes[0]}, is taken for the one without "
        "disease where slices make a patient"
    )


def _called_by_number(image_classes: Sequence[str]) -> bool:
    return any(name.isdecimal() for name in image_classes)


def _raise(error: UserError) -> None:
    raise error


def read_list(
    path: str | Path, image_classes: Sequence[str] = IMAGE_CLASSES, on_error: Callable[[UserError], None] = _raise
) -> list[ListedSlice]:
    """Read a list of slices in any of the three formats; its first line tells which.

    * COVIDx-CT: ``file class [xmin ymin xmax ymax]``. The box of the body isn't used: the paper takes whole slices.
    * the paper's list: ``file``, whose name begins with the class (``0_1728_1013_0023.png``).
    * CSV with a header, in any case: ``file,label`` and, if known, ``patient_id``, ``scan_id`` and ``split``; other
      columns are passed over. Ids are taken as :func:`.patient_ids.stated_id` does.

    Args:
        on_error: called with what is wrong with a line, which is left out then if this returns.

    Returns:
        One entry a file, in the list's order; a file that is listed again with the same class counts once.

    Raises:
        UserError: the file is missing, empty or in no such format, a class is unknown, or a file has two classes; the
            message names file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a list of slices: {error}.") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise UserError(f"{path} lists no slices.")
    parse = _parse_csv if "," in first else _parse_columns
    try:
        listed = list(parse(text, str(path), image_classes, on_error))
    except csv.Error as error:
        raise UserError(f"{path} is no csv file ({error}); look for a quotation mark without its pair.") from error
    if not listed:
        raise UserError(f"{path} lists no slices.")
    return _without_repeats(listed, path, on_error)


def read_one_split(path: str | Path) -> list[ListedSlice]:
    """:func:`read_list` of the paper's classes, for a list that is one split as a whole.

    Raises:
        UserError: also where its column ``split`` says otherwise.
    """
    listed = read_list(path)
    if splits := sorted({entry.split for entry in listed} - {""}):
        raise UserError(f"{path} has a column split ({', '.join(splits)}); give a list of each split, without it.")
    return listed


def count_by_class(listed: Iterable[ListedSlice], num_classes: int) -> list[int]:
    """Slices of each class."""
    counts = Counter(entry.image_class for entry in listed)
    return [counts[c] for c in range(num_classes)]


def _parse_columns(
    text: str, source: str, image_classes: Sequence[str], on_error: Callable[[UserError], None]
) -> Iterator[ListedSlice]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = _column_entry(line, number, f"{source}, line {number}", image_classes)
        except UserError as error:
            on_error(error)
        else:
            yield entry


def _column_entry(line: str, number: int, where: str, image_classes: Sequence[str]) -> ListedSlice:
    fields = line.split()
    if len(fields) not in (1, 2, 6):
        raise UserError(f"{where}: expected 'file class xmin ymin xmax ymax' or 'file', not {line.strip()!r}.")
    if len(fields) == 6 and not all(re.fullmatch(r"-?\d+", box) for box in fields[2:]):
        raise UserError(f"{where}: the box {' '.join(fields[2:])} is not four whole numbers.")
    file = fields[0].replace("\\", "/")
    label = fields[1] if len(fields) > 1 else PurePosixPath(file).name.split("_")[0]
    patient, scan = covidx_ids(file)
    return ListedSlice(file, _class(label, image_classes, where), patient, scan, line=number)


def _parse_csv(
    text: str, source: str, image_classes: Sequence[str], on_error: Callable[[UserError], None]
) -> Iterator[ListedSlice]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = _column_names(reader.fieldnames or ())
    if missing := [name for name in ("file", "label") if name not in columns]:
        raise UserError(f"{source}, line 1: a header 'file,label[,patient_id,scan_id,split]' lacks {missing[0]!r}.")
    reader.fieldnames = columns
    for row in reader:
        try:
            values = {name: (row.get(name) or "").strip() for name in columns}
            entry = _csv_entry(values, reader.line_num, f"{source}, line {reader.line_num}", image_classes)
        except UserError as error:
            on_error(error)
        else:
            yield entry


def _column_names(header: Sequence[str]) -> list[str]:
    """Known columns in lower case; beside one that is spelt so, another case of it is another column."""
    names = [name.strip() for name in header]
    folded = [name.casefold() for name in names]
    return [low if low in _COLUMNS and low not in names else name for low, name in zip(folded, names)]


def _csv_entry(values: dict[str, str], line: int, where: str, image_classes: Sequence[str]) -> ListedSlice:
    if not values["file"]:
        raise UserError(f"{where}: no file.")
    return ListedSlice(
        values["file"].replace("\\", "/"),
        _class(values["label"], image_classes, where),
        stated_id(values.get("patient_id")),
        stated_id(values.get("scan_id")),
        values.get("split", ""),
        line,
    )


def _class(label: str, image_classes: Sequence[str], where: str) -> int:
    number = class_number(label, image_classes)
    if number is None:
        numbered = [f"{index} {name}" for index, name in enumerate(image_classes)]
        known = ", ".join(image_classes if _called_by_number(image_classes) else numbered)
        raise UserError(f"{where}: unknown class {label!r}; the classes are {known}.")
    return number


def _without_repeats(listed: list[ListedSlice], path: Path, on_error: Callable[[UserError], None]) -> list[ListedSlice]:
    first: dict[str, ListedSlice] = {}
    for entry in listed:
        earlier = first.setdefault(entry.file, entry)
        if (earlier.image_class, earlier.split) != (entry.image_class, entry.split):
            where = f"{path}, line {entry.line}: {entry.file}"
            on_error(UserError(f"{where} has another class or split there than on line {earlier.line}."))
    return list(first.values())
