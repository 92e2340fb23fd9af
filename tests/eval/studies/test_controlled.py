"""The controlled study from its command line to its table, with a stub in the place of training."""

import itertools
import json
from functools import partial

import pytest

from regionmed_clip.eval.results import read_results
from regionmed_clip.eval.studies.arms import compare, gather_arms
from regionmed_clip.eval.studies.controlled import ARMS, METRICS, RECIPE, build_parser, main, plan, run_study
from regionmed_clip.eval.studies.measured_runs import PlannedRun, measure_run
from regionmed_clip.eval.studies.pooling import WIDENED_RULE
from regionmed_clip.eval.studies.trainings import Training
from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.training_images import FACTS_FILE, IMAGES_FILE, write_training_images
from regionmed_clip.train.arguments import load_recipe, plain_clip_recipe

DATA = "phantom:num_train=4,num_test=60"


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_stub):
    """(options, names of the trainings, Results) of a study of one seed."""
    start, names = make_stub()
    options = options_of(tmp_path_factory.mktemp("controlled"), "--smoke", "--seeds", "0")
    return options, names, run_study(options, "command", partial(start, data=DATA))


def options_of(folder, *arguments: str):
    return build_parser().parse_intermixed_args(["--output", str(folder), *arguments])


def test_every_arm_has_every_figure_of_the_claims_and_its_differences_from_full(study):
    options, names, results = study
    assert names == ["full-0", "roialign_only-0", "plain_clip-0"]
    assert read_results(options.output / "results.json") == results
    differences = {"full minus plain_clip", "full minus roialign_only"}
    assert {r.model for r in results} == {*ARMS, *differences}
    whole = {(r.model, r.metric) for r in results if r.source is None}
    in_whole = set(METRICS) - {"region_balanced_accuracy"}  # findings of one source are told apart, not of several
    assert whole >= {(model, metric) for model in (*ARMS, *differences) for metric in in_whole}


def test_every_figure_says_what_is_known_of_leaks(study):
    assert {r.protocol["leak_check"]["status"] for r in study[2]} == {"unchecked"}  # the stub leaves no record


def test_a_copy_of_a_test_image_among_the_training_images_marks_all_figures_of_the_arm(tmp_path, make_stub):
    data, metrics = "phantom:num_train=4,num_test=6", ("region_to_text_accuracy",)
    training = Training("full-0", tmp_path / "full-0", RECIPE, (), {"threads": 1})
    make_stub()[0](training, data=data)
    examples = itertools.islice(stream_examples(data, "test", decode_images=False), 1)
    prints = part_of_examples("train", examples).prints
    images = write_training_images(training.folder / IMAGES_FILE, [(prints, ["phantom"])])
    (training.folder / "final" / FACTS_FILE).write_text(json.dumps({"images": images}))
    planned = [PlannedRun("full", 0, training, metrics, ("region",))]
    measured = [measure_run(run, "cpu") for run in planned]
    results = compare(gather_arms(planned, measured), (), metrics).results("a CPU", "command")
    assert [r.protocol["leaks"] for r in results] == [
        "1 of 6 test images are among 1 training images (1 by equal bytes (sha256), 1 by a patient)"
    ]
    assert measure_run(planned[0], "cpu").leaks == measured[0].leaks  # as it was kept


def test_one_model_differs_from_itself_by_nothing_where_its_regions_are_read_alike(study):
    results = {(r.model, r.metric): r for r in study[2] if r.source is None}
    for metric in set(METRICS) - {"region_balanced_accuracy"}:
        same = results["full minus roialign_only", metric]
        is_widened = same.protocol["interval"] == WIDENED_RULE  # every draw all right, or all wrong
        assert same.value == 0
        assert is_widened or (same.low, same.high) == (0, 0)


def test_the_page_says_what_each_arm_is(study):
    table = (study[0].output / "table.md").read_text()
    for told in ("`command`", "full: the recipe as it is.", "model.roi_mode=roialign", "plain_clip: image-text alone"):
        assert told in table


def test_the_arms_differ_from_the_recipe_in_what_they_say_and_in_nothing_else(tmp_path):
    planned = plan(options_of(tmp_path, "--data", "jsonl:a folder", "--seeds", "3"))
    recipes = {run.arm: load_recipe(run.training.recipe, run.training.overrides) for run in planned}
    full = recipes["full"]
    assert (full.data, full.seed, full.baseline) == ("jsonl:a folder", 3, False)
    assert recipes["roialign_only"].model == {**full.model, "roi_mode": "roialign"}
    assert recipes["roialign_only"].stages == full.stages
    assert recipes["plain_clip"].stages == plain_clip_recipe(full).stages
    assert [run.is_plain for run in planned] == [False, False, True]


def test_stages_of_the_user_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path), "stages=[]"])
    assert stop.value.code == 2
    assert "the study makes its arms of the recipe's stages" in capsys.readouterr().err
