"""The commands of `regionmed-corpus`: results on stdout, mistakes in one message on stderr, exit status 0, 1 or 2."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built_corpora import noise, rewrite, write_source

from regionmed_clip.processing.corpus import command_line
from regionmed_clip.processing.corpus.command_line import main
from regionmed_clip.processing.corpus.sources.registry import SOURCE_NAMES


def run(capsys, *arguments):
    """(exit status, stdout, stderr without progress bars) of a command."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    errors = [
        line for line in re.split(r"[\r\n]+", captured.err) if line and "image/s" not in line and "%|" not in line
    ]
    return status, captured.out, "\n".join(errors)


def test_build_pairs_sources_and_roots_in_their_order(capsys, tmp_path):
    first = write_source(tmp_path / "first", [noise(1), noise(2)])
    second = write_source(tmp_path / "second", [noise(3)])
    status, out, _ = run(
        capsys,
        *("build", "--source", "jsonl", "--root", first, "--source", "phantom:num_train=2,num_test=1"),
        *("--source", "jsonl:masks=false", "--root", second, "--out", tmp_path / "out", "--name", "mixed"),
        *("--num-processes", "1", "--seed", "3", "--shard-megabytes", "2", "--strict", "--drop-near"),
    )
    assert status == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [source["name"] for source in manifest["sources"]] == ["first", "phantom", "second"]
    assert [source["num_images"] for source in manifest["sources"]] == [2, 3, 1]
    assert manifest["options"] == {"name": "mixed", "seed": 3, "shard_megabytes": 2, "drop_near": True}
    assert "| phantom |" in out
    assert "mixed@" in out


MISTAKES = [
    (("build", "--source", "jsonl", "--out", "{}/o"), "needs a root"),
    (("build", "--source", "phantom", "--root", "{}", "--out", "{}/o"), "belongs to no --source"),
    (("build", "--source", "jsonl", "--root", "{}", "--root", "{}", "--out", "{}/o"), "belongs to no --source"),
    (("build", "--source", "nonsense", "--root", "{}", "--out", "{}/o"), "Source 'nonsense' is unknown"),
    (("build", "--source", "phantom:speed=2", "--out", "{}/o"), "'speed=2' is no option of phantom"),
    (("build", "--out", "{}/o"), "--source"),
    (("build", "--source", "phantom", "--out", "{}/o", "--num-processes", "0"), "at least 1"),
    (("check", "{}"), "no built corpus"),
    (("check", "{}", "--accept", "everything"), "invalid choice"),
    (("stats", "{}"), "has no manifest.json"),
    (("leak", "{}", "--against", "{}"), "has no manifest.json"),
    (("export", "{}", "--format", "coco", "--output", "{}/e"), "has no manifest.json"),
    (("export", "{}", "--format", "zip", "--output", "{}/e"), "invalid choice"),
    (("push", "{}", "--repo-id", "lab/x"), "has no manifest.json"),
    (("list", "nonsense"), "Source 'nonsense' is unknown"),
    (("paint",), "invalid choice"),
    ((), "required"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_message_and_status_2(arguments, message, capsys, tmp_path):
    status, out, err = run(capsys, *(part.format(tmp_path) for part in arguments))
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_check_tells_a_sound_corpus_from_a_broken_one(capsys, built, tmp_path):
    status, out, _ = run(capsys, "check", built.folder, "--json", tmp_path / "deep/report.json")
    assert (status, "0 errors" in out) == (0, True)
    assert json.loads((tmp_path / "deep/report.json").read_text())["num_items"] == 8
    rewrite(built.folder, "train", lambda rows: rows[0].update(impression="On 03/12/2011."))
    status, out, _ = run(capsys, "check", built.folder)
    assert (status, "ERROR phi-date: 1 x" in out, "2011" in out) == (1, True, False)
    assert run(capsys, "check", built.folder, "--accept", "phi-date")[0] == 0


def test_a_damaged_shard_is_told_in_one_message(capsys, built):
    built.shard_paths("test")[0].write_bytes(b"nothing")
    status, _, err = run(capsys, "stats", built.folder)
    assert (status, "a shard cannot be read" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize("command", [("stats",), ("leak", "--against", "{}"), ("export", "--format", "coco")])
def test_a_shard_with_other_columns_is_told_in_one_message(command, capsys, built, tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), built.shard_paths("train")[0])
    rest = [part.format(tmp_path) for part in command[1:]]
    rest += ["--output", str(tmp_path / "export")] if command[0] == "export" else []
    status, _, errors = run(capsys, command[0], built.folder, *rest)
    assert status == 2
    assert "other columns" in errors


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BrokenProcessPool(), 2, "smaller --num-processes"),
        (sqlite3.OperationalError("disk I/O error"), 2, "disk full"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (KeyboardInterrupt(), 130, "goes on where it was"),
    ],
)
def test_what_ends_a_build_from_outside_is_told_in_one_message(error, status, message, capsys, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(command_line, "build_corpus", fail)
    found, _, errors = run(capsys, "build", "--source", "phantom", "--out", tmp_path / "out")
    assert (found, len(errors.splitlines())) == (status, 1)
    assert message in errors


def test_stats_prints_tables_and_writes_the_same_with_plots(capsys, built_once, tmp_path):
    status, out, _ = run(capsys, "stats", built_once.folder, "--output", tmp_path / "stats")
    assert (status, "## Findings" in out) == (0, True)
    text = (tmp_path / "stats/stats.md").read_text()
    assert text.startswith(out.split("Written to")[0].rstrip("\n"))
    names = re.findall(r"\]\((.+?)\)", text)
    assert "composition.png" in names
    assert all((tmp_path / "stats" / name).is_file() for name in names)


def test_leak_has_status_1_where_something_is_shared(capsys, built_once, tmp_path):
    status, out, _ = run(
        capsys, "leak", built_once.folder, "--against", built_once.folder, "--json", tmp_path / "l.json"
    )
    assert (status, "LEAK train / train: 5 images share equal bytes" in out) == (1, True)
    assert json.loads((tmp_path / "l.json").read_text())["overlaps"][0]["num_images"]["exact"] == 5
    other = write_source(tmp_path / "other", [noise(70), noise(71)])
    assert run(capsys, "leak", built_once.folder, "--against", other)[0] == 0


def test_export_takes_some_splits(capsys, built_once, tmp_path):
    command = ("export", built_once.folder, "--format", "coco", "--output", tmp_path / "e", "--split", "test")
    status, out, _ = run(capsys, *command, "--split", "validation")
    assert (status, "3 images of test, validation" in out) == (0, True)
    assert run(capsys, *command)[0] == 2  # the folder is in use now


def test_list_describes_every_source_and_one_alone(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    table = [line for line in out.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in table] == list(SOURCE_NAMES)
    assert {line.split("|")[4].strip() for line in table} <= {"verified", "unverified"}
    assert all(f"\n{name}: " in out for name in SOURCE_NAMES)
    status, out, _ = run(capsys, "list", "vqa_rad")
    assert (status, "vqa_rad: " in out, "slake: " in out) == (0, True, False)


@pytest.mark.parametrize("command", ["build", "check", "stats", "leak", "export", "push", "list"])
def test_every_command_explains_itself(command, capsys):
    status, out, _ = run(capsys, command, "--help")
    assert (status, f"usage: regionmed-corpus {command}" in out) == (0, True)


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "regionmed_clip.processing.corpus.command_line", "list", "slake"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, "SLAKE" in done.stdout) == (0, "", True)
