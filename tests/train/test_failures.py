"""A process that fails ends all others soon, its message is told once, and every exit code says that it failed."""

from pathlib import Path

import pytest
from processes import run_processes

from regionmed_clip.train.arguments import load_recipe
from regionmed_clip.train.failures import describe_failure, failing_together

WORKER = Path(__file__).with_name("failing_worker.py")


def caught(action) -> Exception:
    with pytest.raises(Exception) as info:
        action()
    return info.value


def test_a_users_mistake_is_told_without_traceback_and_others_with_it():
    mistake = caught(lambda: load_recipe("missing.yaml"))
    assert describe_failure(mistake, 0, 1).startswith("\nValueError: recipe 'missing.yaml' is not a file")
    assert "Traceback" not in describe_failure(mistake, 0, 2)
    foreign = describe_failure(caught(lambda: int("x")), 0, 1)  # a ValueError, and not one of ours
    assert foreign.startswith("\nTraceback (most recent call last)")
    assert foreign.endswith("ValueError: invalid literal for int() with base 10: 'x'\n")


def test_what_fails_on_another_process_than_the_main_one_tells_which():
    text = describe_failure(caught(lambda: 1 / 0), 2, 4)
    assert text.startswith("\nprocess 3 of 4 (rank 2) has failed, so all end: Traceback")
    assert text.endswith("ZeroDivisionError: division by zero\n")


def test_one_process_alone_ends_with_code_1_after_a_mistake_and_raises_anything_else(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit, match="1"), failing_together():
        load_recipe("missing.yaml")
    assert capsys.readouterr().err.count("is not a file") == 1
    with pytest.raises(ZeroDivisionError), failing_together():
        1 / 0  # noqa: B018


def test_a_process_that_fails_alone_ends_the_others_with_its_own_message():
    finished = run_processes(WORKER, 2, "alone")  # the other one would wait for ever
    assert [code for code, _ in finished] == [1, 1]
    assert finished[0][1].strip() == ""
    assert "process 2 of 2 (rank 1) has failed, so all end: Traceback" in finished[1][1]
    assert finished[1][1].count("OSError: sample-17 cannot be read") == 1


def test_a_mistake_on_all_processes_is_told_once_by_the_main_one():
    finished = run_processes(WORKER, 2, "mistake")
    assert [code for code, _ in finished] == [1, 1]
    assert [output.strip() for _, output in finished] == ["ValueError: steps is 0; it must be at least 1.", ""]
