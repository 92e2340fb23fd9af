"""`regionmed-publish` stages, refuses and tells; nothing is sent here, which the tests of the round trip do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regionmed_clip.eval.results import read_results, write_results
from regionmed_clip.model_cards import publish
from regionmed_clip.model_cards.golden_outputs import GOLDEN_FILE, read_golden
from regionmed_clip.model_cards.publications import prepare_model, prepare_space, read_facts
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.corpus.hub_push import Pushed, Upload

FACTS = {"training": ["global: 600 steps"], "data": "phantom@1"}


@pytest.fixture(scope="module")
def final(model, processor, tmp_path_factory):
    """A run's final/, as training leaves it."""
    folder = tmp_path_factory.mktemp("run") / "final"
    return stage_flat_folder(model, processor, folder, results=[], facts=FACTS, training_data=None)


@pytest.fixture
def copied(final, tmp_path):
    return shutil.copytree(final, tmp_path / "final")


@pytest.fixture
def prepare(tmp_path):
    """The function that prepares a folder without rehearsing it; `said` gathers what it tells."""

    def run(folder, **options):
        run.said = []
        options = {"facts": {}, "say": run.said.append, **options}
        return prepare_model(folder, "lab/regionmed-clip", tmp_path / "work", **options)

    return run


def text_of(publication, name):
    return publication.files[name].read_text(encoding="utf-8")


def change_golden(folder, name, tensor):
    """None; the golden file of the folder has another tensor of that name, or lacks it if that is None."""
    path = folder / GOLDEN_FILE
    tensors = {**load_file(path), name: tensor}
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, told)


def test_a_final_folder_needs_nothing_else(final, prepare):
    publication = prepare(final)
    assert publication.notes == ("no results: the card says that nothing was measured (regionmed-eval measures)",)
    card = text_of(publication, "README.md")
    assert "lab/regionmed-clip" in card
    assert "global: 600 steps" in card
    assert {"LICENSE", "handler.py", "requirements.txt", GOLDEN_FILE, "samples/ct.png"} <= set(publication.files)
    assert "transformers<6,>=5.20" in text_of(publication, "requirements.txt")
    for name in ("model.safetensors", GOLDEN_FILE):
        assert publication.files[name].read_bytes() == (final / name).read_bytes()


def test_golden_outputs_of_training_day_stay(copied, prepare):
    change_golden(copied, "outputs.image_embeds", read_golden(copied / GOLDEN_FILE).outputs["image_embeds"] + 1)
    with pytest.raises(ValueError, match="the model's image_embeds is up to 1 from what it was"):
        prepare(copied, pythons=[sys.executable])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("image", torch.zeros(123, 97, 3, dtype=torch.uint8)),
        ("boxes", torch.zeros(2, 4)),
        ("outputs.text_embeds", None),
    ],
)
def test_golden_outputs_of_something_easier_are_made_anew_and_told(name, tensor, final, copied, prepare):
    change_golden(copied, name, tensor)
    publication = prepare(copied)
    assert "golden outputs were of another picture, other texts or other outputs" in " ".join(publication.notes)
    torch.testing.assert_close(load_file(publication.files[GOLDEN_FILE]), load_file(final / GOLDEN_FILE))


def test_golden_inputs_that_the_processor_does_not_give_are_refused(copied, prepare):
    change_golden(copied, "inputs.pixel_values", torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="the processor's pixel_values is up to"):
        prepare(copied)


def test_a_window_that_was_changed_after_training_is_refused(copied, prepare):
    for name in ("processor_config.json", "preprocessor_config.json"):
        told = json.loads((copied / name).read_text())
        told.get("image_processor", told)["window"] = "lung"
        (copied / name).write_text(json.dumps(told))
    with pytest.raises(ValueError, match="the window of this model: 'lung'; where the golden outputs were made: None"):
        prepare(copied)


def test_golden_outputs_that_carry_more_are_refused(copied, prepare):
    change_golden(copied, "patients", torch.tensor(list(b"Patient name: Jane Doe"), dtype=torch.uint8))
    with pytest.raises(ValueError, match="holds 1 tensors or texts that no golden file has"):
        prepare(copied)


def test_golden_outputs_of_an_earlier_version_stay_and_that_is_told(copied, prepare):
    path = copied / GOLDEN_FILE
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    del told["settings"]
    save_file(load_file(path), path, told)
    publication = prepare(copied)
    assert "are of an earlier version and do not tell its window" in " ".join(publication.notes)
    assert publication.files[GOLDEN_FILE].read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("training_data.json", "[]", "training_data.json holds a list, no object; take it from the run again"),
        ("training_data.json", "{", "training_data.json is no JSON .*; take it from the run again"),
        ("card_facts.json", "[1, 2]", "card_facts.json is not what staging writes"),
        ("card_facts.json", '{"facts": [1, 2], "card_sha256": "x"}', "card_facts.json is not what staging writes"),
        ("card_facts.json", '{"facts": {"training_seconds": "abc"}, "card_sha256": "x"}', "must be a int or float"),
        (GOLDEN_FILE, "{", "golden.safetensors cannot be read as safetensors"),
        ("model.safetensors", "{", "config.json and model.safetensors in .* are not whole"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(name, content, reason, copied, prepare):
    (copied / name).write_text(content)
    with pytest.raises(ValueError, match=reason):
        prepare(copied)


def trained_on(folder, *sources):
    """None; training_data.json says that the model saw these (name, licence)."""
    data = [{"kind": "jsonl", "sources": [{"name": name, "license": told} for name, told in sources if told]}]
    images = {"num_images": len(sources), "num_patients": 0, "sources": {name: 1 for name, _ in sources}}
    (folder / "training_data.json").write_text(json.dumps({"data": data, "start": None, "images": images}))


@pytest.mark.parametrize("make", ["model", "space"])
def test_a_model_of_images_that_nobody_may_pass_on_is_made_public_only_on_demand(make, copied, tmp_path):
    def publish_it(**options):
        told = {"say": lambda _: None, **options}
        if make == "model":
            return prepare_model(copied, "lab/a", tmp_path / "work", facts={}, **told)
        return prepare_space(
            copied, tmp_path / "work", model_id=None, model_revision=None, is_rehearsed=False, **told
        )  # fmt: skip

    trained_on(copied, ("open", "CC BY 4.0"), ("ward", "By agreement only"), ("found", None))
    reason = (
        r"trained on images that nobody .*: found \(not recorded\), ward \(By agreement only\);.*--allow-restricted"
    )
    with pytest.raises(ValueError, match=reason):
        publish_it(is_public=True)
    assert publish_it(is_public=True, allow_restricted=True).files
    if make == "model":
        assert publish_it(is_public=False).files
    trained_on(copied, ("open", "CC BY 4.0"))
    assert publish_it(is_public=True).files


def test_a_card_that_was_edited_by_hand_stays(copied, prepare):
    card = (copied / "README.md").read_text() + "\nOurs: trained at the clinic of X.\n"
    (copied / "README.md").write_text(card)
    publication = prepare(copied)
    assert text_of(publication, "README.md") == card
    assert "README.md was edited by hand and is published as it is" in publication.notes


def test_a_statement_deleted_by_hand_is_asked_for(copied, prepare):
    card = (copied / "README.md").read_text()
    assert "**Not a medical device.**" in card
    (copied / "README.md").write_text(card.replace("**Not a medical device.**", ""))
    with pytest.raises(ValueError, match=r"does not say 'Not a medical device'.* delete README.md"):
        prepare(copied)


def test_a_number_typed_into_the_card_is_refused(copied, prepare):
    with (copied / "README.md").open("a") as file:
        file.write("\n| region | phantom | **0.912** |\n")
    with pytest.raises(ValueError, match=r"0\.912, which no result holds"):
        prepare(copied)


def test_a_folder_of_an_older_version_is_told_what_is_made_anew(copied, prepare):
    for name in ("card_facts.json", GOLDEN_FILE):
        (copied / name).unlink()
    notes = " ".join(prepare(copied).notes)
    assert "had no golden outputs; they were made now" in notes
    assert "README.md was written before facts were kept; it was rendered anew" in notes


def test_a_fact_that_cards_no_longer_have_is_dropped_and_told(copied, prepare):
    told = json.loads((copied / "card_facts.json").read_text())
    (copied / "card_facts.json").write_text(json.dumps({**told, "facts": {**told["facts"], "mood": "good"}}))
    publication = prepare(copied)
    assert "the card says nothing of mood any more" in publication.notes
    assert "global: 600 steps" in text_of(publication, "README.md")


def test_local_paths_in_commands_are_cut_and_told(copied, prepare, make_result):
    command = "accelerate launch train/pretrain.py --output_dir /home/jane/runs/q data=jsonl:/mnt/pacs/cxr"
    write_results(copied / "results.json", [make_result(command=command)])
    publication = prepare(copied)
    assert "local paths in the commands of the results were cut to their last part" in publication.notes
    assert "jane" not in text_of(publication, "results.json") + text_of(publication, "README.md")
    assert read_results(publication.files["results.json"])[0].command.endswith("--output_dir .../q data=jsonl:.../cxr")


def test_results_without_an_interval_are_refused(copied, prepare, make_result):
    write_results(copied / "results.json", [make_result()])
    rows = json.loads((copied / "results.json").read_text())
    (copied / "results.json").write_text(json.dumps([{**rows[0], "low": None, "high": None}]))
    with pytest.raises(ValueError, match=r"value, low, high are .* all three must be finite"):
        prepare(copied)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("pytorch_model.bin", "x", r"\[pickle\]"),
        ("notes.txt", "token hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF2h", r"\[secret\]"),
    ],
)
def test_what_must_not_be_beside_a_model_is_refused_though_it_would_stay_here(name, content, reason, copied, prepare):
    (copied / name).write_text(content)
    with pytest.raises(ValueError, match=f"this model is not published; nothing was sent:\n.*{reason}"):
        prepare(copied)


def test_a_secret_in_the_configuration_and_a_patient_in_a_fact_are_refused(copied, prepare):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "note": "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF2h"}))
    with pytest.raises(ValueError, match=r"config.json: line \d+ holds a Hugging Face token"):
        prepare(copied)
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"README.md: line \d+ holds what looks like .* \[phi-name\]"):
        prepare(copied, facts={"data": "films of Dr. Jane Doe"})


def test_what_is_no_part_of_a_model_is_left_out_and_told(copied, prepare):
    (copied / "notes.txt").write_text("remember the milk")
    publication = prepare(copied)
    assert "notes.txt" not in publication.files
    assert "left out, since they are no part of a published model: notes.txt" in publication.notes


def test_facts_of_a_file_stand_in_the_card_and_another_licence_is_not_ours(copied, prepare, tmp_path):
    path = tmp_path / "facts.yaml"
    path.write_text(yaml.safe_dump({"license": "cc-by-nc-4.0", "data": "Films of two hospitals."}))
    publication = prepare(copied, facts=read_facts(path))
    assert "license: cc-by-nc-4.0" in text_of(publication, "README.md")
    assert "LICENSE" not in publication.files
    assert "Apache License" in text_of(publication, "code_license.txt")
    assert "the text of the weights' licence is missing; put it into the folder as LICENSE" in publication.notes
    path.write_text("- a list")
    with pytest.raises(ValueError, match="holds a list; facts are lines"):
        read_facts(path)


def test_the_text_of_the_weights_own_licence_goes_along(copied, prepare):
    (copied / "LICENSE").write_text("Use these weights for research alone.\n")
    publication = prepare(copied, facts={"license": "cc-by-nc-4.0"})
    assert text_of(publication, "LICENSE") == "Use these weights for research alone.\n"
    assert "Apache License" in text_of(publication, "code_license.txt")
    assert not any(note.startswith("left out") for note in publication.notes)


def test_a_dry_run_saves_what_would_be_sent_where_one_can_read_it(copied, tmp_path, capsys):
    options = ["--model", str(copied), "--repo-id", "lab/m", "--dry-run", "--save", str(tmp_path / "new" / "saved")]
    assert publish.main(options) == 0
    told = capsys.readouterr().out
    saved = {path.relative_to(tmp_path / "new" / "saved").as_posix() for path in (tmp_path / "new").rglob("*.*")}
    assert {"README.md", "model.safetensors", "samples/ct.png"} <= saved
    assert all(f"    {name}: " in told for name in saved - {"samples"} if "." in name)
    with pytest.raises(SystemExit):
        publish.main(options)
    assert "is there already" in capsys.readouterr().err


def test_the_space_holds_the_demo_and_of_the_model_what_would_be_published(copied, prepare, make_result, tmp_path):
    for name in (".env", "notes.txt", "training_images.parquet", "checkpoint-5/state.json"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("private")
    write_results(copied / "results.json", [make_result(command="train/pretrain.py --output_dir /home/jane/runs/q")])
    model = prepare(copied)
    told = {"model_id": None, "model_revision": None, "is_rehearsed": False, "say": lambda _: None}
    publication = prepare_space(copied, tmp_path / "space", **told)
    assert {"app.py", "README.md", "requirements.txt"} <= set(publication.files)
    held = {name.removeprefix("model/") for name in publication.files if name.startswith("model/")}
    assert held == set(model.files)
    assert "jane" not in text_of(publication, "model/results.json")
    assert publication.files[f"model/{GOLDEN_FILE}"].read_bytes() == (copied / GOLDEN_FILE).read_bytes()
    assert publication.notes[0] == "holds its own copy of the model"
    left_out = "checkpoint-5, notes.txt, training_images.parquet"
    assert f"left out, since they are no part of a published model: {left_out}" in publication.notes


def test_without_gradio_the_space_is_not_rehearsed_and_that_is_told(final, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = []
    told = {"model_id": "lab/a", "model_revision": "v1.0", "say": said.append}
    assert prepare_space(final, tmp_path / "work", **told).notes == ("loads lab/a",)
    assert said[-1] == "not rehearsed: gradio is not installed; pip install -e '.[demo]'"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "absent"], "there is no folder 'absent'"),
        (["--model", ".", "--repo-id", "nameless"], "no ORG/NAME"),
        (["--model", "."], "has no config.json"),
        (["--model", ".", "--what", "dataset", "--facts", "x"], "--facts is of --what model"),
        (["--model", ".", "--model-id", "a/b"], "--model-id is of --what space"),
        (["--model", "absent", "--what", "space", "--model-id", "a]\nb"], "no ORG/NAME"),
        (
            ["--model", "absent", "--what", "space", "--model-id", "a/b", "--model-revision", "v 1"],
            "'v 1' of a/b is none",
        ),
        (["--model", "absent", "--what", "space", "--model-revision", "v1"], "without a model_id"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        publish.main(["--repo-id", "lab/a", "--dry-run", *arguments])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert reason in told
    assert len(told.strip().splitlines()) == 1


def test_a_sigterm_ends_the_rehearsal_too_and_leaves_no_files(final, tmp_path):
    """It takes about ten seconds: a whole publication up to its rehearsal."""
    command = [sys.executable, "-m", "regionmed_clip.model_cards.publish", "--model", str(final), "--repo-id", "lab/a"]
    run = subprocess.Popen(
        [*command, "--dry-run"], env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    )
    children = []
    deadline = time.monotonic() + 120
    while not children and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        children = [one for one in psutil.Process(run.pid).children() if "bare_rehearsal.py" in " ".join(one.cmdline())]
    assert children, "no rehearsal was seen"
    assert [path.name[:18] for path in tmp_path.glob("regionmed-publish-*")] == ["regionmed-publish-"]
    run.terminate()
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130
    assert told.strip().endswith("interrupted; the same command goes on where it was.")
    assert not any(child.is_running() for child in children)
    assert list(tmp_path.glob("regionmed-*")) == []


def test_the_end_says_how_to_load_what_was_published():
    upload = Upload(repo_id="lab/a", repo_type="model", files={}, message="m", tag="v1")
    told = {"url": "https://hub/lab/a", "commit": "c" * 40, "revision": "c" * 40, "removed": ()}
    lines = publish.outcome(upload, Pushed(**told, is_private=True, has_changed=True), "3 files, 1.0 MB")
    assert lines[0] == f"Published: https://hub/lab/a (private), commit {'c' * 40}, 3 files, 1.0 MB."
    assert 'AutoModel.from_pretrained("lab/a", revision="v1", trust_remote_code=True)' in lines[2]
    assert "It is private" in lines[-1]
    lines = publish.outcome(upload, Pushed(**told, is_private=False, has_changed=False), "3 files, 1.0 MB")
    assert lines[0] == "https://hub/lab/a held all of it before: nothing was committed."
