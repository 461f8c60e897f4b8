"""What other libraries reach when they train on the same slices for as long: a section of MODEL_ZOO.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .markdown import markdown
from .words import PEER_HEAD

_FACTS = {"peer", "backbone", "like", "command", "parameters", "slices", "passes", "seconds", "threads", "metrics"}
_FIGURES = {"segm": ("AP", "AP50", "AP75"), "bbox": ("AP",)}


def read_peers(folder: Path) -> list[dict[str, Any]]:
    """The results of other libraries in ``folder`` (``tools/train_mayaku.py`` writes one); none if it is not there.

    Raises:
        UserError: a file is no such result.
    """
    peers = []
    for path in sorted(folder.glob("*.json")):
        try:
            peer = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}).") from error
        if not isinstance(peer, dict) or not _FACTS <= peer.keys() or not peer["like"]:
            raise UserError(f"{path} is no result of another library trained like a row of the zoo (--like).")
        peers.append(peer)
    return peers


def peer_section(records: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]]) -> str:
    """Each peer's figures below those of the training that it was given the data, recipe and time of.

    Raises:
        UserError: that training is not among the records.
    """
    by_name = {record["name"]: record for record in records}
    rows: list[list[str]] = []
    for peer in peers:
        if peer["like"] not in by_name:
            raise UserError(f"{peer['peer']} was trained like {peer['like']}, and there is no record of that.")
        for row in (_ours(by_name[peer["like"]]), _theirs(peer)):
            if row not in rows:
                rows.append(row)
    head = ("library", "model", "parameters", "slices × passes", "seconds", "threads", "device")
    table = markdown([*head, "mask AP", "AP50", "AP75", "box AP"], rows)
    commands = dict.fromkeys(peer["command"] for peer in peers)
    parts = ["### Beside another library, trained for as long", "", PEER_HEAD, table, "", "```", *commands, "```"]
    return "\n".join(parts)


def _ours(record: Mapping[str, Any]) -> list[str]:
    passes = record["iterations"] * record["batch"] / record["training_slices"]
    found = [record["metrics"][f"{task}/{name}"]["value"] for task, names in _FIGURES.items() for name in names]
    facts = (record["parameters"], record["training_slices"], passes, record["step_seconds"], record["threads"])
    return [f"d2_covid, `{record['name']}`", record["model"], *_cells(*facts), record["device"], *map(_percent, found)]


def _theirs(peer: Mapping[str, Any]) -> list[str]:
    name = f"{peer['peer']} {peer['versions'][peer['peer']]}"
    found = [peer["metrics"][task][name] for task, names in _FIGURES.items() for name in names]
    facts = (peer["parameters"], peer["slices"], peer["passes"], peer["seconds"], peer["threads"])
    return [name, peer["backbone"], *_cells(*facts), peer["device"], *map(_percent, found)]


def _cells(parameters: int, slices: int, passes: float, seconds: float, threads: int) -> list[str]:
    return [f"{parameters / 1e6:.2f} M", f"{slices:,} × {passes:.3g}", f"{seconds:,.0f}", str(threads)]


def _percent(value: float) -> str:
    return f"{value:.1f}"
