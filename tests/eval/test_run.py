"""The command line: evaluates a saved folder on a data spec and says what was wrong with bad input."""

from __future__ import annotations

import sys

import pytest

from regionmed_clip.eval import run
from regionmed_clip.eval.results import read_results

DATA = "phantom:num_train=10,num_test=6"


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    """The tiny model as a saved folder."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_a_saved_folder_is_evaluated_and_reported(folder, tmp_path, capsys):
    arguments = ["--model", str(folder), "--data", DATA, "--output", str(tmp_path), "--colour-probe"]
    assert run.main(arguments) == 0
    results = read_results(tmp_path / "results.json")
    assert {r.model for r in results} == {"regionmed-clip", "colour-size-probe"}
    assert {r.task for r in results} == {"retrieval", "zero_shot", "region", "proposals", "robustness"}
    assert all(r.command.startswith("regionmed-eval --model") for r in results)
    assert (tmp_path / "report" / "index.md").exists()
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out


def test_two_models_share_one_table(folder, tmp_path):
    arguments = ["--model", f"first={folder}", f"second={folder}", "--data", DATA, "--tasks", "region"]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
    results = read_results(tmp_path / "results.json")
    first, second = ([r.value for r in results if r.model == name] for name in ("first", "second"))
    assert first == second
    assert len(first) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "nowhere"}, "has no config.json"),
        ({"--tasks": "vqa2"}, "are not known"),
        ({"--data": "nothing"}, "has no known form"),
        ({"--split": "exam"}, "no split 'exam'"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(folder, tmp_path, capsys, change, message):
    options = {"--model": str(folder), "--data": DATA, "--output": str(tmp_path), **change}
    with pytest.raises(SystemExit) as stop:
        run.main([text for pair in options.items() for text in pair])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_imports_without_running(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["regionmed-eval"])
    with pytest.raises(ValueError, match="given twice"):
        run._named_paths(["a", "b"])
