"""The command line: evaluates saved folders on data specs and says what was wrong with bad input."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from tiny_checkpoints import tiny_clip, tiny_tokenizer
from transformers import CLIPImageProcessorPil

from regionmed_clip.eval import evaluation, run
from regionmed_clip.eval.results import read_results
from regionmed_clip.eval.tasks import split_examples
from regionmed_clip.eval.tasks.registry import TASKS, TUNED_TASKS
from regionmed_clip.eval.tasks.sharing import Share
from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.training_images import write_training_images

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


def test_a_model_to_which_no_task_applies_is_left_out_and_it_is_said(folder, tmp_path, no_pictures, capsys):
    arguments = ["--model", str(folder), "--baselines", "dense_mean", "--data", DATA, "--output", str(tmp_path)]
    assert run.main([*arguments, "--tasks", "retrieval"]) == 0
    assert {result.model for result in read_results(tmp_path / "results.json")} == {"regionmed-clip"}
    assert "regionmed-clip:dense_mean: none of retrieval tells anything new of it" in capsys.readouterr().err


def test_tasks_stand_apart_by_commas_or_spaces(folder, tmp_path, no_pictures):
    arguments = ["--model", str(folder), "--data", DATA, "--output", str(tmp_path)]
    assert run.main([*arguments, "--tasks", "retrieval,region", "counterfactual"]) == 0
    found = {result.task for result in read_results(tmp_path / "results.json")}
    assert found == {"retrieval", "region", "counterfactual"}


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
    assert "A smoke run (the first" in (tmp_path / "results.md").read_text()


def test_a_leak_is_refused_before_anything_is_measured_or_marked(folder, tmp_path, no_pictures, monkeypatch, capsys):
    class Found:
        protocol = {"leak_check": {"status": "found"}, "leaks": "1 of 6"}

        def line(self, model):
            return f"{model}: 1 of 6 leaks"

    class Guard:
        def __init__(self, examples, mode):
            assert len(list(examples)) == 6
            self.mode = mode

        def check(self, model, path, images_file):
            assert images_file is None
            if self.mode == "refuse":
                raise ValueError(f"{model} leaks")
            return Found()

        def check_splits(self, examples_by_split):
            assert not examples_by_split  # retrieval chooses nothing
            return {}

    monkeypatch.setattr(evaluation, "LeakGuard", Guard)
    arguments = ["--model", str(folder), "--data", DATA, "--tasks", "retrieval", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert "regionmed-clip leaks" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert run.main([*arguments, "--leaks", "mark"]) == 0
    assert {row["protocol"]["leaks"] for row in json.loads((tmp_path / "results.json").read_text())} == {"1 of 6"}


def test_only_the_splits_that_tasks_tune_or_learn_on_are_opened_and_checked(folder, tmp_path, no_pictures, monkeypatch):
    opened = []
    find = split_examples.SplitExamples.__getitem__
    monkeypatch.setattr(evaluation.SplitExamples, "__getitem__", lambda s, name: opened.append(name) or find(s, name))
    arguments = ["--model", str(folder), "--data", DATA, "--output", str(tmp_path)]
    untuned = [task for task in TASKS if task not in TUNED_TASKS]
    assert run.main([*arguments, "--tasks", ",".join(untuned)]) == 0
    assert set(opened) == {"test"}
    assert not any("split_leak_check" in r.protocol for r in read_results(tmp_path / "results.json"))
    for tasks, splits in (("zero_shot,grounding,calibration", {"validation"}), ("probe", {"validation", "train"})):
        opened.clear()
        assert run.main([*arguments, "--tasks", tasks]) == 0
        assert set(opened) == {"test", *splits}
        for result in read_results(tmp_path / "results.json"):
            checks = result.protocol["split_leak_check"]
            assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(splits, "none found")


def test_a_list_of_training_images_marks_the_model_it_is_of_and_what_is_compared_with_it(
    folder, tmp_path, no_pictures, capsys
):
    examples = list(split_examples.SplitExamples(DATA, "test", tmp_path)["test"])
    prints = part_of_examples("test", examples[:2]).prints
    write_training_images(tmp_path / "seen.parquet", [(prints, ["phantom"] * 2)])
    shutil.copytree(folder, tmp_path / "other")
    arguments = ["--model", str(folder), f"other={tmp_path / 'other'}", "--data", DATA, "--tasks", "region"]
    arguments += ["--output", str(tmp_path), "--leaks", "mark"]
    assert run.main([*arguments, "--training-images", f"other={tmp_path / 'seen.parquet'}"]) == 0
    leaks = {r.model: r.protocol.get("leaks") for r in read_results(tmp_path / "results.json")}
    assert leaks["regionmed-clip"] is None
    assert leaks["other"].startswith("2 of 6 test images are among 2 training images")
    assert leaks["regionmed-clip minus other"] == f"other: {leaks['other']}"
    for given, message in (("seen.parquet", "of which model"), ("who=seen.parquet", "NAME one of")):
        with pytest.raises(SystemExit):
            run.main([*arguments, "--training-images", given])
        assert message in capsys.readouterr().err


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
    assert not list((tmp_path / "out").iterdir())
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
        ({"--device": "abacus"}, "--device 'abacus' cannot be used"),
        ({"--seed": "-1"}, "--seed is -1"),
        ({"--output": "/dev/null/out"}, "--output '/dev/null/out' cannot be written to"),
        ({"--training-images": "absent.parquet"}, "there is no file 'absent.parquet'"),
        ({"--leaks": "ignore"}, "invalid choice: 'ignore'"),
        ({"--baselines": "roi"}, "baselines ['roi'] are not known"),
        ({"--model": "{folder}:crop", "--tasks": "proposals"}, "--tasks proposals tell nothing of 'regionmed-clip'"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(folder, tmp_path, capsys, change, message):
    options = {"--model": str(folder), "--data": DATA, "--output": str(tmp_path), **change}
    options["--model"] = options["--model"].format(folder=folder)
    with pytest.raises(SystemExit) as stop:
        run.main([text for pair in options.items() for text in pair])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_is_named_twice_is_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--model", str(folder), "--data", DATA, DATA, "--output", str(tmp_path)])
    assert f"--data names {DATA} twice" in capsys.readouterr().err


def test_the_module_imports_without_running(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regionmed-eval", "--help"])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 0
    assert "--baselines" in capsys.readouterr().out
