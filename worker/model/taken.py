"""Takes files of a checkpoint into a model folder as they are, where most of a file needs no change.

Then nothing is stored twice: where both are on one disk, the file gets a second name, else it is copied.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker.model.weights import Place

_NAME: Final = "checkpoint.{number}"

_SHARE_MIN: Final = 0.5
"""Of a file, so that it is worth taking: what is meant alone would else take less room."""


def take(places: Iterable[Place], folder: Path) -> dict[Path, str]:
    """Take the files into a folder of which these places are the greater part; their names there."""
    used = Counter[Path]()
    for place in set(places):
        used[place.path] += place.size_bytes
    worthy = [path for path in sorted(used) if used[path] >= _SHARE_MIN * path.stat().st_size]
    names = {path: _NAME.format(number=number) for number, path in enumerate(worthy)}
    for path, name in names.items():
        _link(path.resolve(), folder / name)
    return names


def names_in(folder: Path) -> list[str]:
    """Of the files that a folder has taken."""
    return sorted(path.name for path in folder.glob(_NAME.format(number="*")))


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
