"""The study from its command line to its table, with a stub in the place of training."""

import pytest

from regionmed_clip.eval.results import read_results
from regionmed_clip.eval.studies import roi_modes
from regionmed_clip.eval.studies.roi_modes import CROP, build_parser, plan, run_study


def options_of(tmp_path, *arguments: str):
    return build_parser().parse_intermixed_args(["--output", str(tmp_path), "--seeds", "0", "1", *arguments])


def test_a_study_trains_each_mode_and_seed_once_and_goes_on_where_it_stopped(tmp_path, stub):
    start, names = stub

    def stop_at_the_third(training) -> None:
        if len(names) == 2:
            raise KeyboardInterrupt
        start(training)

    options = options_of(tmp_path, "--modes", "prompter", CROP)
    with pytest.raises(KeyboardInterrupt):
        run_study(options, "command", stop_at_the_third)
    results = run_study(options, "command", start)
    assert names == ["prompter-0", f"{CROP}-0", "prompter-1", f"{CROP}-1"]
    assert read_results(tmp_path / "results.json") == results
    assert {r.model for r in results} == {"prompter", CROP, f"prompter minus {CROP}"}
    assert {r.metric for r in results} == {"region_to_text_accuracy", "place_accuracy", "laterality_accuracy"}
    assert {r.stratum for r in results} == {"exact boxes", "noisy boxes"}
    for name in (f"prompter - {CROP}", "`command`", "| 8 | 2 |", "right place among other places"):
        assert name in (tmp_path / "table.md").read_text()
    assert (tmp_path / "accuracies.png").stat().st_size > 10_000


def test_equal_weights_differ_by_nothing_and_evaluation_without_noise_is_exact(tmp_path, stub):
    start, _ = stub
    options = options_of(tmp_path, "--modes", "prompter", "roialign", "--box-noise", "0")
    results = run_study(options, "command", start)
    for result in results:
        if "minus" in result.model:
            assert (result.value, result.low, result.high) == (0, 0, 0)
    exact, noisy = ([r.value for r in results if r.stratum == f"{boxes} boxes"] for boxes in ("exact", "noisy"))
    assert exact == noisy


def test_a_model_is_evaluated_anew_only_under_another_noise(tmp_path, stub, monkeypatch):
    start, _ = stub
    run_study(options_of(tmp_path, "--modes", "prompter"), "command", start)
    measured = []
    measure = roi_modes.measure_figures
    monkeypatch.setattr(roi_modes, "measure_figures", lambda *a, **k: measured.append(k["seed"]) or measure(*a, **k))
    run_study(options_of(tmp_path, "--modes", "prompter"), "command", start)
    assert measured == []
    run_study(options_of(tmp_path, "--modes", "prompter", "--box-noise", "0.4"), "command", start)
    assert measured == [0, 1]


def test_every_mode_changes_only_itself_in_the_recipe(tmp_path):
    planned = plan(options_of(tmp_path, "--smoke", "--train-noise", "0.2", "data=phantom"))
    overrides = {(run.mode, run.train_noise): run.training.overrides for run in planned if run.seed == 1}
    assert overrides["prompter", 0.0] == ("data=phantom", "seed=1", "model.roi_mode=prompter")
    assert overrides["maskpool", 0.2] == ("data=phantom", "seed=1", "model.roi_mode=maskpool", "box_noise=0.2")
    assert (CROP, 0.2) not in overrides
    assert len(planned) == 2 * (4 + 3)
    assert [run.seed for run in planned] == [0] * 7 + [1] * 7


def test_crop_and_encode_is_the_plain_clip_of_the_recipe(tmp_path):
    from regionmed_clip.train.arguments import load_recipe, plain_clip_recipe

    (run,) = plan(build_parser().parse_args(["--output", str(tmp_path), "--seeds", "3", "--modes", CROP]))
    recipe = load_recipe(run.training.recipe, run.training.overrides)
    assert recipe.stages == plain_clip_recipe(load_recipe(run.training.recipe)).stages
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "roi"], "invalid choice"),
        (["--box-noise", "0.7"], "0.7 is no share from 0 to 0.5"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        roi_modes.main(["--output", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_another_study_is_refused_before_any_training(tmp_path, stub):
    start, names = stub
    options = options_of(tmp_path, "--modes", "prompter")
    last = plan(options)[-1].training
    last.folder.mkdir()
    (last.folder / "request.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a training of another recipe"):
        run_study(options, "command", start)
    assert names == []
