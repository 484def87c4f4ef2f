"""Where coarse matrices are cached.

The file is in the user's own cache directory and never in the collection, which may come from somebody
else: a wrong matrix would silently give wrong neighbours. Its name is a hash of the collection's folder and
of its data files with their sizes and times, one of which (ctime) cannot be set. When these change, the
matrix is computed again and the old one deleted.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from jaxtyping import Float
from platformdirs import user_cache_path
from torch import Tensor

from opsin.base.errors import InputError
from opsin.collection.ask.coarse import Coarse
from opsin.collection.store.store import Collection
from opsin.collection.store.tables import IMAGES

MAPPED = 4  # coarse matrices kept mapped into memory
WHERE = "folder.txt"


def kept(collection: Collection, name: str) -> Path:
    """The cache path of the rounded features of a collection in its current state."""
    source = collection.folder.resolve()
    with collection.reading(IMAGES) as table:
        assert table is not None
        lines = [str(table.version)]
        for path in sorted(file.path for part in table.get_fragments() for file in part.data_files()):
            stat = (source / IMAGES / "data" / path).stat()
            lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    folder, state = (sha256(os.fsencode(text)).hexdigest()[:32] for text in (str(source), "\n".join(lines)))
    return user_cache_path("opsin") / "collections" / folder / state / name


def make(place: Path, parts: Iterator[Float[Tensor, "m d"]], width: int, folder: Path) -> None:
    """Round the features of the collection in `folder` into the cache."""
    state = place.parent
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state.parent / WHERE).write_bytes(os.fsencode(folder.resolve()))
        shutil.rmtree(place, ignore_errors=True)  # it may be damaged
        with tempfile.TemporaryDirectory(dir=state, ignore_cleanup_errors=True) as fresh:
            Coarse.write(Path(fresh), parts, width)
            Path(fresh).rename(place)
    except OSError as error:
        if not place.is_dir():  # another search may have written it meanwhile
            raise InputError(f"cannot write to {state}: {error.strerror or error}") from error
    _delete_stale(state)


def _delete_stale(state: Path) -> None:
    """Delete cached matrices of earlier states of this collection and of deleted collections."""
    stale = [other for other in state.parent.iterdir() if other.is_dir() and other != state]
    for where in state.parent.parent.glob(f"*/{WHERE}"):
        if not os.path.lexists(os.fsdecode(where.read_bytes())):
            stale.append(where.parent)
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(MAPPED)
def mapped(place: Path) -> Coarse:
    """A coarse matrix, kept mapped between searches."""
    return Coarse(place)
