"""Files and folders are whole or absent whichever write fails; what a kill leaves is cleaned up."""

from __future__ import annotations

from pathlib import Path

import pytest

from regionmed_clip.train import whole_files
from regionmed_clip.train.whole_files import clean_up, delete_whole_folder, write_whole, write_whole_folder


class PowerCutError(Exception):
    """Stands for the moment at which a process is killed."""


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)

    return write


def content(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a.txt", "b.txt")]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cut_after(monkeypatch, num_calls: int) -> list[str]:
    """Lets so many calls that change or flush the disk succeed and the next one fail; gives the calls' names."""
    calls: list[str] = []

    def counted(name, real):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) > num_calls:
                raise PowerCutError(name)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(whole_files, "flush_to_disk", counted("flush", whole_files.flush_to_disk))
    monkeypatch.setattr(whole_files.shutil, "rmtree", counted("rmtree", whole_files.shutil.rmtree))
    for name in ("mkdir", "rename", "replace", "write_text"):
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    return calls


def test_a_folder_replaced_is_the_old_or_the_new_one_at_whichever_call_the_power_goes(tmp_path, monkeypatch):
    path = tmp_path / "run" / "best"
    write_whole_folder(path, fill("old"))
    with monkeypatch.context() as patch:
        calls = cut_after(patch, 10_000)
        write_whole_folder(path, fill("old"))
    assert [calls.count(name) for name in ("write_text", "flush", "rename", "rmtree")] == [2, 4, 2, 1]
    seen = []
    for num_calls in range(len(calls)):
        with monkeypatch.context() as patch:
            cut_after(patch, num_calls)
            with pytest.raises(PowerCutError):
                write_whole_folder(path, fill(f"new {num_calls}"))
        clean_up(path.parent)
        assert names(path.parent) == {"best"}
        found = content(path)
        assert found in (["old", "old"], [f"new {num_calls}"] * 2)
        seen.append(found != ["old", "old"])
        write_whole_folder(path, fill("old"))
    assert seen == sorted(seen)  # first the old one, from one call on the new one
    assert any(seen)
    assert not all(seen)


def test_a_half_deleted_folder_is_never_taken_and_goes_at_the_next_cleaning(tmp_path, monkeypatch):
    write_whole_folder(tmp_path / "step_1", fill("x"))
    with monkeypatch.context() as patch:
        cut_after(patch, 1)  # renamed, not deleted
        with pytest.raises(PowerCutError):
            delete_whole_folder(tmp_path / "step_1")
    assert names(tmp_path) == {"step_1.discarded"}
    clean_up(tmp_path)
    assert names(tmp_path) == set()


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    write_whole(path, "old")
    for num_calls in range(2):  # the new text is written and flushed, but not in its place
        with monkeypatch.context() as patch:
            cut_after(patch, num_calls + 1)
            with pytest.raises(PowerCutError):
                write_whole(path, "new")
        assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == {"recipe.yaml"}
