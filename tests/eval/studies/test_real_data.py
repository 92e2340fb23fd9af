"""The study on real data from its command line to its table, with a stub in the place of training."""

from __future__ import annotations

import json
from functools import partial

import pytest

from regionmed_clip.eval.studies import real_data
from regionmed_clip.eval.studies.real_arms import with_negatives, with_towers, without_negatives
from regionmed_clip.eval.studies.real_data import ARMS, StartFacts, build_parser, plan, run_study
from regionmed_clip.train.arguments import load_recipe

GLOBAL = {"name": "global", "steps": 3, "loss_weights": {"image_text": 1.0}}
REGION = {"name": "region", "steps": 4, "num_negatives": 9, "loss_weights": {"image_text": 1.0, "region_text": 2.0}}


@pytest.fixture
def start_folder(model, processor, tmp_path):
    """The checkpoint to be fine-tuned: the tiny model."""
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def options_of(tmp_path, *arguments: str):
    shared = ["--output", str(tmp_path / "study"), "--data", "phantom:num_train=4,num_test=14"]
    return build_parser().parse_intermixed_args([*shared, *arguments])


def test_the_table_goes_source_by_source_and_pairs_what_differs_in_one_thing(tmp_path, start_folder, stub):
    start, names = stub
    options = options_of(tmp_path, "--start", str(start_folder), "--seeds", "5")
    (tmp_path / "study").mkdir()
    results = run_study(options, "command", partial(start, data="phantom:num_train=4,num_test=14"))
    assert names == [f"{arm}-5" for arm in ARMS]
    assert {r.model for r in results} == {
        *ARMS,
        "with_hard_negatives minus without_hard_negatives",
        "lora_fine_tuning minus full_fine_tuning",
    }
    assert {(r.metric, r.source) for r in results} == {
        ("region_to_text_accuracy", None),
        ("region_balanced_accuracy", "phantom"),
    }
    table = (tmp_path / "study" / "table.md").read_text()
    revision = StartFacts.read(start_folder).revision
    for told in ("## phantom", f"weights {revision}", "3 hard negatives a region", "real_small from random weights"):
        assert told in table
    assert (tmp_path / "study" / "arms.png").stat().st_size > 5_000


def test_every_arm_is_a_sound_recipe_and_pairs_differ_in_one_thing(tmp_path, start_folder):
    options = options_of(tmp_path, "--start", str(start_folder), "--seeds", "0")
    runs = {run.arm: run.training for run in plan(options, StartFacts.read(start_folder))}
    recipes = {arm: load_recipe(training.recipe, training.overrides) for arm, training in runs.items()}
    without, with_them = (recipes[name] for name in ("without_hard_negatives", "with_hard_negatives"))
    assert (without.num_negatives, with_them.num_negatives) == (0, 3)
    assert not any("hard_negatives" in stage.loss_weights for stage in without.stages)
    assert [("hard_negatives" in s.loss_weights) for s in with_them.stages] == [
        "region_text" in s.loss_weights for s in without.stages
    ]
    full, lora = (recipes[name] for name in ("full_fine_tuning", "lora_fine_tuning"))
    assert full.num_steps == lora.num_steps
    assert full.image_size == lora.image_size == 32  # the checkpoint's
    assert full.model == {"start": str(start_folder)}
    assert {stage.modes.vision for stage in full.stages} == {"full"}
    assert {stage.modes.text for stage in lora.stages} == {"lora"}
    assert lora.stages[0].learning_rates["vision"] == pytest.approx(10 * full.stages[0].learning_rates["vision"])
    assert runs["lora_fine_tuning"].request["start"] == StartFacts.read(start_folder).revision


def test_hard_negatives_come_where_region_texts_are_trained_and_go_everywhere():
    added = with_negatives([GLOBAL, REGION])
    assert added[0] == GLOBAL
    assert added[1]["loss_weights"] == {"image_text": 1.0, "region_text": 2.0, "hard_negatives": 0.5}
    assert "num_negatives" not in added[1]
    assert without_negatives(added)[1] == {key: value for key, value in REGION.items() if key != "num_negatives"}
    weighted = {**REGION, "loss_weights": {"region_text": 1.0, "hard_negatives": 0.25}}
    assert with_negatives([weighted])[0]["loss_weights"]["hard_negatives"] == 0.25
    with pytest.raises(ValueError, match="no stage of the recipe has the term region_text"):
        with_negatives([GLOBAL])


def test_towers_change_their_mode_with_their_rate_and_frozen_ones_stay():
    stage = {"name": "a", "learning_rate": 1e-3, "learning_rates": {"text": 2e-4, "roi": 5e-4}}
    (lora,) = with_towers([{**stage, "modes": {"roi": "full"}}], "lora", 10)
    assert lora["modes"] == {"roi": "full", "vision": "lora", "text": "lora"}
    assert lora["learning_rates"] == pytest.approx({"text": 2e-3, "roi": 5e-4, "vision": 1e-2})
    (full,) = with_towers([{**lora, "lora": {"vision": {"rank": 4}}}], "full", 10)
    assert full["modes"]["vision"] == full["modes"]["text"] == "full"
    assert full["learning_rates"] == pytest.approx({"text": 2e-4, "roi": 5e-4, "vision": 1e-3})
    assert "lora" not in full
    (frozen,) = with_towers([{**stage, "modes": {"text": "frozen"}}], "lora", 10)
    assert frozen["modes"] == {"text": "frozen", "vision": "lora"}


def test_fine_tuning_without_a_checkpoint_is_refused_before_any_training(tmp_path, capsys, stub):
    start, names = stub
    with pytest.raises(ValueError, match="lora_fine_tuning need a checkpoint: give --start RUN/final"):
        run_study(options_of(tmp_path, "--arms", "lora_fine_tuning"), "command", start)
    assert names == []
    with pytest.raises(SystemExit) as stop:
        real_data.main(["--output", str(tmp_path), "--data", "phantom", "--start", str(tmp_path)])
    assert stop.value.code == 2
    assert "has no config.json" in capsys.readouterr().err


def test_another_checkpoint_in_the_same_folder_is_another_training(tmp_path, start_folder):
    options = options_of(tmp_path, "--start", str(start_folder), "--seeds", "0", "--arms", "full_fine_tuning")
    (run,) = plan(options, StartFacts(start_folder, 32, "first"))
    run.training.folder.mkdir(parents=True)
    (run.training.folder / "request.json").write_text(json.dumps(run.training.request))
    run.training.check()
    (other,) = plan(options, StartFacts(start_folder, 32, "second"))
    with pytest.raises(ValueError, match="or other conditions"):
        other.training.check()
