"""Result records: written whole, read back equal, refused when unsound."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from regionmed_clip.eval.results import Result, describe_hardware, find_result, read_results, write_results

PROTOCOL = {"gallery": 40, "unique_texts": 40, "split": "test", "split_sha256": "0" * 64, "prompts_sha256": None}
SOUND = Result(
    model="regionmed-clip",
    task="region",
    metric="region_to_text_accuracy",
    value=0.8,
    low=0.75,
    high=0.85,
    n=1000,
    protocol=PROTOCOL,
    model_revision="abc",
    data_revision="phantom@1",
    seed=0,
    hardware="a CPU",
    command="regionmed-eval",
)


def test_results_read_back_equal_and_leave_no_temporary_file(tmp_path):
    skipped = replace(SOUND, value=None, low=None, high=None, protocol={**PROTOCOL, "skipped": "3 unique texts"})
    path = tmp_path / "deep" / "results.json"
    write_results(path, [SOUND, skipped])
    assert read_results(path) == [SOUND, skipped]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_the_file_is_the_json_list_that_the_design_names(tmp_path):
    write_results(tmp_path / "results.json", [SOUND])
    (row,) = json.loads((tmp_path / "results.json").read_text())
    names = (
        "model task metric value low high n source stratum protocol model_revision data_revision seed hardware command"
    )
    assert list(row) == names.split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "must be finite numbers"),
        ({"low": 0.9}, "low 0.9 exceeds high 0.85"),
        ({"n": -1}, "n is -1; it must be a whole number"),
        ({"model": ""}, "model is ''"),
        ({"protocol": {"gallery": 3}}, "protocol lacks"),
        ({"value": None}, r"protocol\['skipped'\] says why"),
    ],
)
def test_an_unsound_record_is_refused_and_the_old_file_stays(tmp_path, change, message):
    path = tmp_path / "results.json"
    write_results(path, [SOUND])
    with pytest.raises(ValueError, match=message):
        write_results(path, [replace(SOUND, **change)])
    assert read_results(path) == [SOUND]


@pytest.mark.parametrize("content", ["{}", "not json", '[{"model": "x"}]', "[3]"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(path)


def test_a_record_is_found_by_model_and_metric():
    assert find_result([SOUND], model="regionmed-clip", metric="region_to_text_accuracy") is SOUND
    assert find_result([SOUND], model="plain-clip", metric="region_to_text_accuracy") is None


def test_the_hardware_line_names_cores_or_a_device():
    assert "cores" in describe_hardware() or " x " in describe_hardware()
