"""Files and folders that are on disk whole or not at all, whenever the process or the machine stops.

What is new is written beside its place as NAME.partial, flushed, and renamed. A folder that it replaces is
NAME.replaced until then, and one that is deleted NAME.discarded. `clean_up` ends what a kill has left in between. Two
processes must not write into one folder at a time; see run_lock.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
DISCARDED_SUFFIX = ".discarded"
UNFINISHED_SUFFIXES = (PARTIAL_SUFFIX, REPLACED_SUFFIX, DISCARDED_SUFFIX)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    temporary.write_text(text, encoding="utf-8")
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)


def write_whole_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Puts a folder of files at `path`, in place of one that may be there; `write` fills the empty folder it is given.

    At every moment `path` is, at the latest after `clean_up`, the old folder or the new one, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_up(path.parent)
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    replaced = path.with_name(path.name + REPLACED_SUFFIX)
    temporary.mkdir()
    write(temporary)
    for file in temporary.iterdir():
        flush_to_disk(file)
    flush_to_disk(temporary)
    if path.exists():
        path.rename(replaced)
    temporary.rename(path)
    flush_to_disk(path.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def delete_whole_folder(path: Path) -> None:
    """Deletes a folder so that what a kill leaves of it is never taken for the whole."""
    discarded = path.with_name(path.name + DISCARDED_SUFFIX)
    path.rename(discarded)
    shutil.rmtree(discarded)


def clean_up(folder: Path) -> None:
    """Deletes what is half written or half deleted in `folder`, and puts back a folder whose replacement never came."""
    for path in folder.glob("*"):
        if path.suffix not in UNFINISHED_SUFFIXES:
            continue
        place = path.with_suffix("")
        if path.suffix == REPLACED_SUFFIX and not place.exists():
            path.rename(place)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def flush_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
