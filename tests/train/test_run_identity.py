"""A checkpoint of another recipe or other data is refused with a line for each value that differs."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_corpora import rows_of, write_corpus

from regionmed_clip.processing.corpus.sources.phantom import PhantomSource
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.run_identity import differences, identity_hash, refuse_other_identity, run_identity

SMOKE = RECIPES_FOLDER / "smoke.yaml"


def identity_of(*overrides: str, start: str | None = None) -> dict:
    return json.loads(json.dumps(run_identity(load_recipe(SMOKE, overrides), start)))  # as state.json keeps it


def test_a_changed_value_is_told_with_both_values_and_the_way_to_it():
    found = differences(identity_of(), identity_of("stages.joint.learning_rate=0.002", "optimizer.betas=[0.9, 0.95]"))
    assert found == [
        "optimizer.betas: [0.9, 0.98] in the checkpoint, [0.9, 0.95] now",
        "stages.joint.learning_rate: 0.0005 in the checkpoint, 0.002 now",
    ]


def test_a_value_of_the_recipe_is_told_once_and_that_of_a_single_stage_at_the_stage():
    everywhere = differences(identity_of(), identity_of("max_regions=5"))
    assert everywhere == ["max_regions: 3 in the checkpoint, 5 now"]
    in_one = differences(identity_of(), identity_of("stages.region.max_regions=5"))
    assert in_one == ["stages.region.max_regions: 3 in the checkpoint, 5 now"]


def test_a_stage_that_was_renamed_added_or_moved_is_told_by_name():
    before = {"stages": [{"name": "a", "steps": 1}, {"name": "b", "steps": 2}]}
    after = {"stages": [{"name": "b", "steps": 2}, {"name": "c", "steps": 1}]}
    assert differences(before, after) == [
        'stages (order): ["a", "b"] in the checkpoint, ["b", "c"] now',
        "stages.a.steps: 1 in the checkpoint, nothing now",
        "stages.c.steps: nothing in the checkpoint, 1 now",
    ]


def test_other_data_and_another_start_are_other_runs():
    before, now = identity_of(start="abc"), identity_of(start="def")
    assert differences(before, now) == ['start_revision: "abc" in the checkpoint, "def" now']
    images = "phantom@phantom-v1:seed={}:difficulty=0.4 of {} images"
    assert differences(before, identity_of("data=phantom:num_train=96,seed=1", start="abc")) == [
        f'data: "{images.format(0, 96)}" in the checkpoint, "{images.format(1, 96)}" now'
    ]
    more_in_one = differences(before, identity_of("stages.joint.data=phantom:num_train=97", start="abc"))
    assert more_in_one == [
        f'stages.joint.data: "{images.format(0, 96)}" in the checkpoint, "{images.format(0, 97)}" now'
    ]
    mixed = identity_of("data=phantom:num_train=9*2 + phantom:num_train=7", start="abc")
    assert mixed["data"] == f"({images.format(0, 9)}) * 2.0 + ({images.format(0, 7)}) * 1.0"


def test_a_run_goes_on_with_data_and_start_that_have_been_moved(tmp_path):
    rows = rows_of(PhantomSource(num_train=4, num_test=0).records("train"))
    folder = write_corpus(tmp_path / "corpus", {"train": rows}).folder
    start = "tokenizer.source=start"
    before = identity_of(f"data={folder}", f"model.start={tmp_path}/old", start, start="abc")
    moved = shutil.move(folder, tmp_path / "moved")
    now = identity_of(f"data={moved}", f"model.start={tmp_path}/new", start, start="abc")
    assert differences(before, now) == []
    assert str(tmp_path) not in json.dumps(now)


def test_keys_that_do_not_decide_the_weights_may_change():
    assert identity_of() == identity_of("keep_checkpoints=7", "trackers=[]", "checkpoint_every_steps=1", "name=other")
    assert identity_hash(identity_of()) == identity_hash(identity_of("keep_checkpoints=7"))
    assert identity_hash(identity_of()) != identity_hash(identity_of("seed=1"))


def test_the_refusal_shows_at_most_twenty_differences_and_the_way_out(tmp_path):
    before = {f"key_{number:02d}": 0 for number in range(23)}
    refuse_other_identity(tmp_path, before, dict(before))
    with pytest.raises(ValueError) as refused:
        refuse_other_identity(tmp_path / "step_1", before, dict.fromkeys(before, 1))
    lines = str(refused.value).splitlines()
    assert "step_1 is a checkpoint of another recipe or other data" in lines[0]
    assert lines[1] == "  key_00: 0 in the checkpoint, 1 now"
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[-2] == "  and 3 more"
    assert lines[-1].startswith("Resume with the recipe.yaml and the data of that run, or train into another")
