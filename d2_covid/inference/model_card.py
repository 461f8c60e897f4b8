"""The card of a shipped model: what it is, was trained and measured on, is for, and is not for.

Lies beside the weights as ``<name>.json``, which :mod:`.card_reading` reads and checks.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Base:
    """The lesion model whose tensors a classifier shares, and which build of it."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """What is built.

    Attributes:
        config: name of the config.
        parameters: weights and BatchNorm statistics, all told.
        image_classes: empty for a model that does not classify.
    """

    config: str
    parameters: int
    lesion_classes: tuple[str, ...]
    image_classes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What storing has changed: detections of the stored model beside those of the model as trained.

    Attributes:
        on: which slices.
        detections: found by the model as trained, at or above its score threshold.
        unmatched: of these and of the stored model's, how many the other one lacks.
        score_difference, box_difference_px: largest between two that match; None where none do.
        mask_dice: of the united masks of all slices; None where there are none.
        image_score_difference: largest; None for a model that does not classify.
    """

    on: str
    slices: int
    detections: int
    unmatched: int
    score_difference: float | None
    box_difference_px: float | None
    mask_dice: float | None
    image_score_difference: float | None


@dataclass(frozen=True)
class Storage:
    """How the tensors are stored.

    Attributes:
        tensors: number types, in words.
        trained_sha256: of the checkpoint before storing.
        comparison: with it; None where it came in half precision already.
    """

    tensors: str
    trained_sha256: str
    comparison: Comparison | None


@dataclass(frozen=True)
class Source:
    """Training data.

    Attributes:
        used: what of it was used.
        terms: what its terms ask.
        citation: whom to cite.
    """

    name: str
    url: str
    used: str
    terms: str
    citation: str


@dataclass(frozen=True)
class Training:
    """How the model was trained; None for what is not known."""

    recipe: str
    command: str
    data: tuple[Source, ...]
    slices: int | None = None
    patients: int | None = None
    seconds: float | None = None
    device: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Metric:
    """A figure and the ends of its 95 % interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one data set.

    Attributes:
        data: which data and which split, in words.
        weights: "stored": these very weights were measured; "trained": the checkpoint before storing.
        lesions: in the ground truth; None for data without lesion masks.
        interval: how the intervals were made.
        notes: what must be said with the figures.
        metrics: by name: ``segm/AP50`` in percent, ``union/dice`` and ``image/accuracy`` in [0, 1].
    """

    data: str
    weights: str
    slices: int
    patients: int | None
    lesions: int | None
    interval: str
    notes: tuple[str, ...]
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Licence:
    """Under what terms the weights may be used, and why."""

    weights: str
    reason: str


@dataclass(frozen=True)
class ModelCard:
    """All that is said of a shipped model.

    Attributes:
        default: whether ``d2-covid predict`` uses it when no weights are named.
        file, size_bytes, sha256: of the weights.
        base: None unless the weights share tensors with those of another shipped model.
        d2_covid: version that wrote the weights.
        limits: the first is a line that every prediction carries.
    """

    schema_version: int
    name: str
    kind: str
    default: bool
    file: str
    size_bytes: int
    sha256: str
    base: Base | None
    date: str
    d2_covid: str
    summary: str
    architecture: Architecture
    storage: Storage
    intended_use: str
    not_intended_use: str
    limits: tuple[str, ...]
    training: Training
    evaluation: tuple[Evaluation, ...]
    licence: Licence

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the json."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def limits_line(self) -> str:
        return self.limits[0]
