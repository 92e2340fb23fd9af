"""A checkpoint of another recipe or other data is refused with a line for each value that differs."""

from __future__ import annotations

import json

import pytest

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
    changed = {**before, "data_revision": dict.fromkeys(before["data_revision"], "phantom@other")}
    (line,) = differences(before, changed)
    assert line.startswith("data_revision.phantom:num_train=96,num_test=48: ")
    assert line.endswith('"phantom@other" now')


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
