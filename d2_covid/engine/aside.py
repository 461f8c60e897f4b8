"""Folders of runs that are not gone on with, kept under another name."""

from pathlib import Path


def set_aside(folder: Path) -> Path | None:
    """Rename a run that is not to be gone on with, so that nothing of it is lost; None where there is none."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before_{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside
