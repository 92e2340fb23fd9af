"""Annotation rows grouped by item in an SQLite file, so that a source of any size needs no memory for its index."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from typing import Any

from regionmed_clip.processing.corpus.records import SPLITS

_SCHEMA = """
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT UNIQUE, split TEXT, patient_id TEXT, position INTEGER);
CREATE TABLE rows (item INTEGER, fields TEXT);
CREATE TABLE bad (key TEXT, reason TEXT);
CREATE TABLE counts (split TEXT PRIMARY KEY, number INTEGER);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT);
"""
_INDEXES = """
CREATE INDEX rows_of_item ON rows (item);
CREATE INDEX items_of_split ON items (split, position);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One annotation row: the key of the item (image) it belongs to, and its fields, which JSON can hold."""

    key: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read: the key of its item, or "file:line" where that is unknown, and why.

    An item with a bad row is bad as a whole: its other rows alone would leave regions out without a word.
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source: its key and all its rows in the order in which they came."""

    key: str
    rows: tuple[dict[str, Any], ...]
    patient_id: str | None = None
    split: str = ""


class ItemIndex:
    """Items in the order of their first row, by split; written once, then read from any process.

    Args:
        path: the SQLite file. A whole one is reused; None makes one in a temporary folder, removed with this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            folder = tempfile.mkdtemp(prefix="medregion-index-")
            weakref.finalize(self, rmtree, folder, ignore_errors=True)
            path = Path(folder) / "index.sqlite"
        self.path = path
        self._connection: tuple[int, sqlite3.Connection] | None = None  # of the process with this id

    def is_written(self) -> bool:
        """Whether the file is there, which it is only when whole."""
        return self.path.is_file()

    def write(
        self,
        rows: Iterable[Row | BadRow],
        place: Callable[[Item], tuple[str, str | None]],
        find_notes: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Groups `rows` by key, puts every item into the split that `place` names beside its patient id, and keeps
        notes on the whole, values that JSON can hold, which may be costly to find; they are asked for after all rows.

        A ValueError of `place` makes the item bad.
        """
        temporary = self.path.with_name(f"{self.path.name}.partial")
        temporary.unlink(missing_ok=True)
        connection = sqlite3.connect(temporary)
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        for row in map(_in_unicode, rows):
            if isinstance(row, BadRow):
                connection.execute("INSERT INTO bad VALUES (?, ?)", (row.key, row.reason))
                continue
            found = connection.execute("SELECT id FROM items WHERE key = ?", (row.key,)).fetchone()
            item = found or (connection.execute("INSERT INTO items (key) VALUES (?)", (row.key,)).lastrowid,)
            connection.execute("INSERT INTO rows VALUES (?, ?)", (item[0], json.dumps(row.fields)))
        connection.executescript(_INDEXES)
        _place_items(connection, place)
        notes = ((name, json.dumps(value)) for name, value in find_notes().items())
        connection.executemany("INSERT INTO notes VALUES (?, ?)", notes)
        connection.commit()
        connection.close()
        temporary.rename(self.path)

    def note(self, name: str) -> Any:
        """The note of this name that was found when the index was written; ValueError where there was none."""
        found = self._read("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise ValueError(f"{self.path} has no note {name!r}; it was written without. Remove the file.")
        return json.loads(found[0])

    def num_items(self) -> dict[str, int]:
        """Number of items by split, in the order train, validation, test; only splits that have any."""
        numbers = dict(self._read("SELECT split, number FROM counts"))
        return {split: numbers[split] for split in SPLITS if split in numbers}

    def items(self, split: str, start: int, stop: int) -> Iterator[Item]:
        """Items [start, stop) of `split`."""
        found = self._read(
            "SELECT items.id, items.key, items.patient_id, rows.fields FROM items JOIN rows ON rows.item = items.id "
            "WHERE split = ? AND position >= ? AND position < ? ORDER BY position, rows.rowid",
            (split, start, stop),
        )
        for (_, key, patient_id), rows in groupby(found, key=lambda row: row[:3]):
            yield Item(key, tuple(json.loads(row[3]) for row in rows), patient_id, split)

    def item(self, key: str) -> Item:
        """The good item of this key; ValueError where there is none."""
        found = self._read("SELECT split, position FROM items WHERE key = ?", (key,)).fetchone()
        if found is None or found[1] is None:
            raise ValueError(f"{self.path} has no item {key!r}; ask for one that it gave.")
        return next(self.items(found[0], found[1], found[1] + 1))

    def bad(self) -> Iterator[BadRow]:
        """The bad items, each with the first reason."""
        for key, reason in self._read("SELECT key, reason FROM bad GROUP BY key HAVING MIN(rowid) ORDER BY MIN(rowid)"):
            yield BadRow(key, reason)

    def _read(self, query: str, values: tuple = ()) -> sqlite3.Cursor:
        if self._connection is None or self._connection[0] != os.getpid():
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False)  # `datasets` reads in threads
            self._connection = (os.getpid(), connection)
        return self._connection[1].execute(query, values)

    def __deepcopy__(self, memo: dict[int, Any]) -> ItemIndex:
        return self  # it is only read once written, and a copy must not outlive the temporary file

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_connection": None}


def _in_unicode(row: Row | BadRow) -> Row | BadRow:
    """The row; one whose key is no Unicode text, such as a file name in another encoding, as a bad row."""
    reason = row.reason if isinstance(row, BadRow) else ""
    try:
        (row.key + reason).encode()
    except UnicodeEncodeError:
        key, reason = (text.encode(errors="backslashreplace").decode() for text in (row.key, reason))
        return BadRow(key, reason or f"the name {key!r} is no UTF-8 text; names of images must be. Rename the file.")
    return row


def _place_items(connection: sqlite3.Connection, place: Callable[[Item], tuple[str, str | None]]) -> None:
    """Gives every good item its split, patient and position within the split; counts the items by split."""
    counts = dict.fromkeys(SPLITS, 0)
    found = connection.execute(
        "SELECT items.id, items.key, rows.fields FROM items JOIN rows ON rows.item = items.id "
        "WHERE items.key NOT IN (SELECT key FROM bad) ORDER BY items.id, rows.rowid"
    )
    writer = connection.cursor()
    for (number, key), rows in groupby(found, key=lambda row: row[:2]):
        item = Item(key, tuple(json.loads(row[2]) for row in rows))
        try:
            split, patient_id = place(item)
        except ValueError as error:
            writer.execute("INSERT INTO bad VALUES (?, ?)", (key, str(error)))
            continue
        writer.execute(
            "UPDATE items SET split = ?, patient_id = ?, position = ? WHERE id = ?",
            (split, patient_id, counts[split], number),
        )
        counts[split] += 1
    writer.executemany("INSERT INTO counts VALUES (?, ?)", [(split, n) for split, n in counts.items() if n])
