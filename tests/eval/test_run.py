"""The command line: evaluates saved folders on data specs and says what was wrong with bad input."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny_checkpoints import tiny_clip, tiny_tokenizer
from transformers import CLIPImageProcessorPil

from regionmed_clip.eval import evaluation, run
from regionmed_clip.eval.results import read_results
from regionmed_clip.eval.tasks import split_examples
from regionmed_clip.eval.tasks.registry import TASKS
from regionmed_clip.eval.tasks.sharing import Share

DATA = "phantom:num_train=10,num_test=6,num_validation=6"


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    """The tiny model as a saved folder."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """The folder of caches, away from the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def no_pictures(monkeypatch):
    """Evaluations with empty reports, which have tests of their own."""

    def write_page(path, results, **_):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(sorted({result.data_revision for result in results})))

    monkeypatch.setattr(evaluation, "write_report", lambda folder, **_: None)
    monkeypatch.setattr(evaluation, "write_page", write_page)


def test_all_tasks_of_a_saved_folder_are_measured_and_reported(folder, tmp_path, capsys):
    arguments = ["--model", str(folder), "--data", DATA, "--output", str(tmp_path), "--colour-probe"]
    assert run.main(arguments) == 0
    results = read_results(tmp_path / "results.json")
    assert {r.model for r in results} == {"regionmed-clip", "colour-size-probe"}
    assert {r.task for r in results} == set(TASKS)
    assert all(r.command.startswith("regionmed-eval --model") for r in results)
    own = [r for r in results if r.model == "regionmed-clip"]
    assert {r.protocol["reading"] for r in own} == {"roi"}
    assert {r.protocol["leak_check"]["status"] for r in own} == {"unchecked"}  # nobody wrote its training images down
    assert (tmp_path / "report" / "index.md").exists()
    assert "region → text, top-1" in (tmp_path / "report.html").read_text()
    printed = capsys.readouterr()
    assert "| region → text, top-1 | all |" in printed.out
    assert "| phantom: " in (tmp_path / "results.md").read_text()
    assert "| phantom: " not in printed.out  # what is printed fits a screen
    assert "regionmed-clip: leaks were not looked for" in printed.err


def test_models_are_compared_with_the_first_on_equal_draws(folder, tmp_path, no_pictures):
    arguments = ["--model", f"first={folder}", f"second={folder}", f"cut={folder}:crop", "--data", DATA]
    assert run.main([*arguments, "--tasks", "region,proposals", "--output", str(tmp_path)]) == 0
    results = read_results(tmp_path / "results.json")
    values = {name: [r.value for r in results if r.model == name] for name in ("first", "first minus second")}
    assert len(values["first"]) > len(values["first minus second"]) > 0
    assert set(values["first minus second"]) == {0.0}
    assert {r.model for r in results} == {"first", "second", "cut", "first minus second", "first minus cut"}
    crops = [r for r in results if r.model == "cut"]
    assert {r.protocol["reading"] for r in crops} == {"crop"}
    assert {r.task for r in crops} == {"region"}  # it proposes what the first one proposes
    assert {r.protocol["paired"] for r in results if " minus " in r.model} == {True}


def test_a_checkpoint_of_others_that_crops_goes_through_all_tasks_beside_ours(folder, tmp_path, no_pictures):
    square = {"height": 32, "width": 32}
    tiny_clip(bos_token_id=0, eos_token_id=1, pad_token_id=1).save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size=square).save_pretrained(tmp_path / "clip")
    tiny_tokenizer(pad_token="</s>").save_pretrained(tmp_path / "clip")
    arguments = ["--model", str(folder), str(tmp_path / "clip"), "--data", DATA, "--output", str(tmp_path)]
    assert run.main(arguments) == 0
    results = read_results(tmp_path / "results.json")
    others = [r for r in results if r.model == "clip"]
    assert {r.task for r in others} == set(TASKS) - {"proposals"}
    assert {(r.protocol["checkpoint"], r.protocol["geometry"], r.protocol["reading"]) for r in others} == {
        ("clip", "source", "crop")
    }
    assert min(r.protocol["texts_truncated"] for r in others) > 0  # the tiny tokenizer takes a dozen tokens
    differences = {r.metric: r for r in results if r.model == "regionmed-clip minus clip" and r.source is None}
    assert "different queries" in differences["region_to_text_accuracy"].protocol["skipped"]  # regions at the rim
    assert differences["macro_auroc"].value is not None


def test_baselines_are_readings_of_the_first_model_and_measured_by_what_they_change(folder, tmp_path, no_pictures):
    arguments = ["--model", str(folder), "--baselines", "dense_mean", "--data", DATA, "--output", str(tmp_path)]
    assert run.main([*arguments, "--tasks", "retrieval,region"]) == 0
    tasks = {}
    for result in read_results(tmp_path / "results.json"):
        tasks.setdefault(result.model, set()).add(result.task)
    assert tasks == {
        "regionmed-clip": {"retrieval", "region"},
        "regionmed-clip:dense_mean": {"region"},
        "regionmed-clip minus regionmed-clip:dense_mean": {"region"},
    }


def test_several_data_have_a_table_and_a_page_each(folder, tmp_path, no_pictures, capsys):
    other = "phantom:num_train=10,num_test=5,seed=3"
    arguments = ["--model", str(folder), "--data", DATA, other, "--tasks", "retrieval", "--output", str(tmp_path)]
    assert run.main(arguments) == 0
    results = read_results(tmp_path / "results.json")
    assert {(r.data_revision, r.n) for r in results if r.metric == "image_to_text_mrr" and r.source is None} == {
        ("phantom@phantom-v1:seed=0:difficulty=0.4", 6),
        ("phantom@phantom-v1:seed=3:difficulty=0.4", 5),
    }
    table = (tmp_path / "results.md").read_text()
    assert table.count("| figure | data |") == 2
    assert "## phantom@phantom-v1:seed=3:difficulty=0.4, test" in table
    pages = [(tmp_path / place / "report.html").read_text() for place in ("data_1", "data_2")]
    assert pages == [f"phantom@phantom-v1:seed={seed}:difficulty=0.4" for seed in (0, 3)]
    assert "data_1/report.html, data_2/report.html" in capsys.readouterr().out


def test_embeddings_are_kept_between_commands_unless_forbidden(folder, tmp_path, caches, no_pictures):
    arguments = ["--model", str(folder), "--data", DATA, "--tasks", "region", "--output", str(tmp_path)]
    kept = caches / "regionmed_clip" / "embeddings"
    run.main([*arguments, "--no-cache"])
    assert not kept.exists()
    run.main(arguments)
    first = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    run.main(arguments)
    assert first == {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(first) == 1
    run.main([*arguments, "--cache", str(tmp_path / "elsewhere")])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_smoke_takes_a_few_images_and_every_figure_says_so(folder, tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr(split_examples, "NUM_SMOKE_IMAGES", 3)
    arguments = ["--model", str(folder), "--data", DATA, "--tasks", "retrieval,calibration", "--output", str(tmp_path)]
    assert run.main([*arguments, "--smoke"]) == 0
    results = read_results(tmp_path / "results.json")
    assert {r.n for r in results if r.metric == "image_to_text_mrr" and r.source is None} == {3}
    assert all(r.protocol["smoke"].startswith("the first") for r in results)


def test_a_leak_is_refused_before_anything_is_measured_or_marked(folder, tmp_path, no_pictures, monkeypatch, capsys):
    class Found:
        protocol = {"leak_check": {"status": "found"}, "leaks": "1 of 6"}

        def line(self, model):
            return f"{model}: 1 of 6 leaks"

    class Guard:
        def __init__(self, examples, mode):
            assert len(list(examples)) == 6
            self.mode = mode

        def check(self, model, path):
            if self.mode == "refuse":
                raise ValueError(f"{model} leaks")
            return Found()

    monkeypatch.setattr(evaluation, "LeakGuard", Guard)
    arguments = ["--model", str(folder), "--data", DATA, "--tasks", "retrieval", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert "regionmed-clip leaks" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert run.main([*arguments, "--leaks", "mark"]) == 0
    assert {row["protocol"]["leaks"] for row in json.loads((tmp_path / "results.json").read_text())} == {"1 of 6"}


def test_processes_other_than_the_main_one_write_and_print_nothing(folder, tmp_path, no_pictures, monkeypatch, capsys):
    class Silent(Share):
        """The second process of two, whose exchanges give back what it has itself."""

        def from_main(self, make):
            return make()

        def join(self, parts):
            return [part for _, part in parts]

        def is_own(self, number):
            return True

    monkeypatch.setattr(evaluation, "join_launch", lambda device: (Silent(1, 2), torch.device("cpu")))
    arguments = ["--model", str(folder), "--data", DATA, "--tasks", "region", "--output", str(tmp_path / "out")]
    assert run.main([*arguments, "--no-cache"]) == 0
    assert not (tmp_path / "out").exists()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "nowhere"}, "has no config.json"),
        ({"--tasks": "vqa2"}, "are not known"),
        ({"--data": "nothing"}, "has no known form"),
        ({"--split": "exam"}, "no split 'exam'"),
        ({"--batch-size": "0"}, "--batch-size is 0"),
        ({"--leaks": "ignore"}, "invalid choice: 'ignore'"),
        ({"--baselines": "roi"}, "baselines ['roi'] are not known"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(folder, tmp_path, capsys, change, message):
    options = {"--model": str(folder), "--data": DATA, "--output": str(tmp_path), **change}
    with pytest.raises(SystemExit) as stop:
        run.main([text for pair in options.items() for text in pair])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_imports_without_running(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regionmed-eval", "--help"])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 0
    assert "--baselines" in capsys.readouterr().out
