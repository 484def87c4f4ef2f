"""Results that can be resumed in an output folder: of one or several photos, complete or not."""

from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from opsin.base.errors import InputError
from opsin.base.folders import RECORD, VALUES, checkpoints, interrupted
from opsin.base.records import read_json


class Stage(TypedDict):
    """The progress of a command in `record.json`: its photos, or where its only one was stopped."""

    kind: str
    photos: NotRequired[list[str]]
    stopped: NotRequired[str]


def parts(folder: str | Path) -> dict[str, Path]:
    """The results in an output folder by name; those of a killed command are its last checkpoints.

    A single result is called `.`. Raises `InputError` if there is none, or a command is still writing.
    """
    results_folder = _place(folder)
    if not (results_folder / RECORD).exists() and not checkpoints(results_folder):
        raise InputError(f"{folder} holds no {RECORD}: not a saved result")
    names = _photos(results_folder) or ["."]
    results = {name: part for name in names if (part := _last(results_folder / name)) is not None}
    if not results and names != ["."]:
        raise InputError(
            f"{folder} holds no result to resume: its command was killed before the first checkpoint"
        )
    if not results:
        raise InputError(f"{folder} holds a {RECORD} but no {VALUES}: no pictures to resume")
    return results


def not_begun(folder: str | Path) -> list[str]:
    """The photos that the command of an output folder had not begun when it ended."""
    results_folder = _place(folder)
    if not (results_folder / RECORD).exists():
        return []
    record, results = read_json(results_folder / RECORD, Stage), parts(folder)
    return [name for name in record.get("photos", []) if record["kind"] == "Photos" and name not in results]


def _place(folder: str | Path) -> Path:
    """The folder of the results: `folder`, or the working folder that a killed command left in it."""
    return interrupted(folder) or Path(folder)


def stopped(folder: str | Path) -> dict[str, str]:
    """The folders of results that were stopped early, each with the step at which."""
    records = {str(part): read_json(part / RECORD, Stage) for part in parts(folder).values()}
    return {part: record["stopped"] for part, record in records.items() if record.get("stopped")}


def _last(folder: Path) -> Path | None:
    """The last checkpoint in a folder, else the result in it, else `None`."""
    saved = checkpoints(folder)
    return saved[-1] if saved else folder if (folder / VALUES).is_file() else None


def _photos(folder: Path) -> list[str]:
    """The subfolders of a command's photos; none if it had only one. Names in a record are untrusted."""
    if not (folder / RECORD).exists():
        return []
    record = read_json(folder / RECORD, Stage)
    subfolders = {path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()}
    return [name for name in record.get("photos", []) if record["kind"] == "Photos" and name in subfolders]
