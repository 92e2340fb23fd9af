"""The study of orders from its command line to its table, with a stub in the place of training."""

import json
from functools import partial

import pytest

from regionmed_clip.eval.results import read_results
from regionmed_clip.eval.studies import measured_runs, study_command, training_orders
from regionmed_clip.eval.studies.orders import list_arms
from regionmed_clip.eval.studies.recipes import read_recipe
from regionmed_clip.eval.studies.training_orders import METRICS, build_parser, plan, run_study

ARMS = ["three_stages", "global_only", "without_global", "region_then_joint"]
DATA = "phantom:num_train=4,num_test=24"  # 20 unique captions are needed for retrieval


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_stub):
    """A study that was interrupted before its third training and went on: options, names of trainings, Results."""
    start, names = make_stub()
    options = options_of(tmp_path_factory.mktemp("orders"))

    def stop_at_the_third(training) -> None:
        if len(names) == 2:
            raise KeyboardInterrupt
        start(training, DATA)

    with pytest.raises(KeyboardInterrupt):
        run_study(options, "command", stop_at_the_third)
    return options, names, run_study(options, "command", partial(start, data=DATA))


def options_of(folder, *arguments: str):
    return build_parser().parse_intermixed_args(
        ["--output", str(folder), "--smoke", "--seeds", "0", *arguments, "--arms", *ARMS]
    )


def test_every_arm_is_trained_once_and_a_study_goes_on_where_it_stopped(study):
    options, names, results = study
    assert names == ["three_stages-0", "global_only-0", "without_global-0"]
    assert read_results(options.output / "results.json") == results
    assert {r.model for r in results} == {
        *("three_stages", "global_only", "without_global"),
        *("three_stages minus global_only", "without_global minus three_stages", "without_global minus global_only"),
    }
    assert {r.metric for r in results} == set(METRICS)


def test_the_page_tells_the_command_the_arms_and_which_of_them_coincide(study):
    table = (study[0].output / "table.md").read_text()
    for told in (
        "`command`",
        "Each arm takes 24 steps.",
        "| n | 24",
        "region_then_joint is the same as without_global",
    ):
        assert told in table
    assert (study[0].output / "arms.png").stat().st_size > 10_000


def test_one_model_differs_from_itself_by_nothing_but_how_its_regions_are_read(study):
    results = {(r.model, r.metric): r for r in study[2]}
    for metric in METRICS:
        same = results["without_global minus three_stages", metric]
        assert (same.value, same.low, same.high) == (0, 0, 0)
    (readings,) = results["global_only", "region_to_text_accuracy"].protocol["readings_per_seed"]
    assert results["global_only", "region_to_text_accuracy"].value == max(readings.values())
    assert set(readings) == {"crop", "dense_mean"}


def test_a_model_is_not_evaluated_again(study, monkeypatch):
    monkeypatch.setattr(measured_runs, "load_model", lambda *_: pytest.fail("outcomes.json has it"))
    monkeypatch.setattr(study_command, "draw_arms", lambda *_, **__: None)
    assert run_study(study[0], "command", lambda _: pytest.fail("it is trained")) == study[2]


def test_overrides_of_the_user_stand_before_those_of_the_study_and_threads_are_kept(tmp_path):
    options = build_parser().parse_intermixed_args(
        ["--output", str(tmp_path), "--smoke", "data=phantom", "--arms", "joint"]
    )
    arms, _ = list_arms(read_recipe(options.recipe)["stages"], options.arms)
    planned = plan(options, arms)
    assert [run.training.name for run in planned] == ["joint-0", "joint-1", "joint-2"]
    overrides = planned[1].training.overrides
    assert overrides[0] == "data=phantom"
    assert overrides[-2] == "seed=1"
    assert overrides[-1].startswith("stages=[{name: global, steps: 8,")
    assert planned[1].training.request["threads"] >= 1
    assert not planned[1].is_plain


def test_a_folder_of_another_request_is_refused_before_any_training(stub, tmp_path):
    start, names = stub
    (tmp_path / "without_global-0").mkdir()
    (tmp_path / "without_global-0" / "request.json").write_text(json.dumps({"threads": 1}))
    with pytest.raises(ValueError, match=r"without_global-0 holds a training of another recipe.*other conditions"):
        run_study(options_of(tmp_path), "command", start)
    assert names == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "region_only"], "invalid choice"),
        (["--recipe", "absent.yaml"], "'absent.yaml' is not a file"),
        (["--jobs", "999"], "--jobs is 999"),
        (["stages.joint.steps=3"], "the study makes its arms of the recipe's stages"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        training_orders.main(["--output", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
