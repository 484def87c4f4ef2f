"""What there is to go on with in an output folder: of one photo or several, complete, stopped or killed."""

from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from opsin.base.errors import InputError
from opsin.base.folders import RECORD, VALUES, checkpoints, interrupted
from opsin.base.records import read_json


class Stage(TypedDict):
    """What `record.json` says of how far a command came: its photos, or where its only one was stopped."""

    kind: str
    photos: NotRequired[list[str]]
    stopped: NotRequired[str]


def parts(folder: str | Path) -> dict[str, Path]:
    """The results in an output folder by their names in it, the last checkpoints of a killed command first.

    A single result is called `.`. Raises `InputError` where there is none, or a command is still writing.
    """
    place = _place(folder)
    if not (place / RECORD).exists() and not checkpoints(place):
        raise InputError(f"{folder} holds no {RECORD}: not a saved result")
    names = _photos(place) or ["."]
    found = {name: part for name in names if (part := _last(place / name)) is not None}
    if not found and names != ["."]:
        raise InputError(
            f"{folder} holds no result to resume: its command was killed before its first checkpoint"
        )
    if not found:
        raise InputError(f"{folder} holds a {RECORD} but no {VALUES}: no pictures to resume")
    return found


def not_begun(folder: str | Path) -> list[str]:
    """The photos that the command of an output folder had not begun when it ended."""
    place = _place(folder)
    if not (place / RECORD).exists():
        return []
    about, there = read_json(place / RECORD, Stage), parts(folder)
    return [name for name in about.get("photos", []) if about["kind"] == "Photos" and name not in there]


def _place(folder: str | Path) -> Path:
    """Where the results are: in the folder, or in what a killed command left there."""
    return interrupted(folder) or Path(folder)


def stopped(folder: str | Path) -> dict[str, str]:
    """The folders of the results in an output folder that were ended early, each with where."""
    records = {str(part): read_json(part / RECORD, Stage) for part in parts(folder).values()}
    return {part: record["stopped"] for part, record in records.items() if record.get("stopped")}


def _last(place: Path) -> Path | None:
    """The last checkpoint in a folder, else the result in it."""
    kept = checkpoints(place)
    return kept[-1] if kept else place if (place / VALUES).is_file() else None


def _photos(place: Path) -> list[str]:
    """The folders of a command's photos; none where it had but one. What a record says is no path."""
    if not (place / RECORD).exists():
        return []
    about = read_json(place / RECORD, Stage)
    below = {path.name for path in place.iterdir() if path.is_dir() and not path.is_symlink()}
    return [name for name in about.get("photos", []) if about["kind"] == "Photos" and name in below]
