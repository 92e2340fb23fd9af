"""Making an index: what is in it, that it goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from processes import run_processes
from tiny_corpora import small_corpus, write_jsonl_source

pytest.importorskip("faiss", reason="pip install -e '.[search]'")

from regionmed_clip.eval.search import building
from regionmed_clip.eval.search.building import IndexSettings, build_index
from regionmed_clip.eval.search.corpus_rows import LEVELS, REGIONS
from regionmed_clip.eval.search.search_index import SearchIndex, vector_blocks
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.processing.corpus.data_spec import stream_examples

DATA = "phantom:num_test=10,num_train=1"
COMMAND = (sys.executable, "-m", "regionmed_clip.eval.search.search_command", "index")


def vectors_of(index: SearchIndex, level: str) -> np.ndarray:
    return np.concatenate(vector_blocks(index.rows(level)))


def test_an_index_holds_every_image_and_region_as_an_evaluation_embeds_them(index, model, processor):
    embedded = embed_examples(model, processor, stream_examples(DATA, "test", decode_images=False), progress=False)
    assert (index.num_rows("images"), index.num_rows("regions")) == (10, embedded.num_regions)
    np.testing.assert_allclose(vectors_of(index, "images"), embedded.image_embeds, atol=1e-6)  # float32, other batches
    np.testing.assert_allclose(vectors_of(index, "regions"), embedded.region_embeds, atol=1e-6)
    assert index.column("images", "image_id") == embedded.image_ids
    assert index.column("regions", "image_row") == embedded.region_image.tolist()
    assert index.column("regions", "description") == [facts["description"] for facts in embedded.region_facts]
    assert index.column("regions", "box") == embedded.region_boxes_pixel_xyxy.tolist()


def test_an_index_opens_with_datasets_and_faiss_alone(index):
    rows = datasets.load_from_disk(str(index.folder / "regions"))
    rows.load_faiss_index("embedding", str(index.folder / "regions.faiss"))
    query = np.array(rows[3]["embedding"], dtype=np.float32)
    scores, nearest = rows.get_nearest_examples("embedding", query, k=2)
    assert nearest["region"][0] == rows[3]["region"]
    assert scores[0] == pytest.approx(1.0, abs=1e-5)


def test_the_manifest_says_what_was_measured(index):
    entry = index.manifest["levels"]["regions"]
    assert entry["kind"] == "hnsw"
    assert entry["measured"][-1]["recall@10"]["of_rows"] == 1.0
    assert entry["search_width"] == entry["measured"][-1]["search_width"]


def test_a_small_index_is_exact_unless_a_graph_is_asked_for(make_index, tmp_path):
    assert make_index(tmp_path / "index")["levels"]["images"]["kind"] == "exact"


def test_a_finished_index_is_not_made_again(make_index, tmp_path, monkeypatch):
    manifest = make_index(tmp_path / "index")
    monkeypatch.setattr(building, "embed_rows", None)
    assert make_index(tmp_path / "index") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_killed_with_sigkill_goes_on_and_ends_the_same(make_index, model_folder, tmp_path):
    """Takes about 12 s: a process of its own is started and killed."""
    data = "phantom:num_test=120,num_train=1"
    arguments = ["--model", str(model_folder), "--data", data, "--images-per-part", "2", "--batch-size", "2"]
    process = subprocess.Popen([*COMMAND, *arguments, "--output", str(tmp_path / "index")])
    parts = tmp_path / "index.partial" / "parts"
    deadline = time.monotonic() + 300
    while len(list(parts.glob("part-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "index").exists()
    kept = {path: path.stat().st_ino for path in parts.glob("part-*")}
    assert 3 <= len(kept) < 60
    embedded, embed_rows = [], building.embed_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "embed_rows", lambda *a, **b: embedded.append(a[3]) or embed_rows(*a, **b))
        make_index(tmp_path / "index", data=data, images_per_part=2, batch_size=2)
    assert len(embedded) == 60 - len(kept)  # nothing is done twice
    make_index(tmp_path / "whole", data=data, images_per_part=2, batch_size=2)
    resumed, whole = SearchIndex(tmp_path / "index"), SearchIndex(tmp_path / "whole")
    for level in LEVELS:
        assert resumed.rows(level).to_list() == whole.rows(level).to_list()  # embeddings too, bit for bit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


KILLED_AT = """
import os, signal, sys
from regionmed_clip.eval.search import building, search_command

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half_an_index(index, path):
    building.import_faiss().write_index(index, str(path))
    os.truncate(path, path.stat().st_size // 2)
    die()

def flush(path):
    if path.name == "facts.json" and path.parent.name.startswith(".part-000002"):
        die()

rename = building.Path.rename
points = {
    "in a part": lambda: setattr(building, "_flush", flush),
    "between parts and joining": lambda: setattr(building, "_finish", die),
    "while the FAISS index is written": lambda: setattr(building, "write_index", half_an_index),
    "right before the rename": lambda: setattr(
        building.Path, "rename", lambda path, to: die() if path.name == building.FINISHED else rename(path, to)
    ),
    "right after the rename": lambda: setattr(
        building.Path, "rename", lambda path, to: (rename(path, to), path.name == building.FINISHED and die())
    ),
}
for name, arrange in points.items():  # each goes on with what the one before has left
    child = os.fork()
    if not child:
        arrange()
        search_command.main(sys.argv[1:])
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=": ", flush=True)
"""


def test_killed_again_and_again_an_index_goes_on_and_ends_the_same(make_index, model_folder, tmp_path):
    """Takes about 15 s: five processes, each killed further on than the one before, go on with one index."""
    arguments = ["--model", str(model_folder), "--data", DATA, "--images-per-part", "4", "--kind", "hnsw"]
    command = [sys.executable, "-c", KILLED_AT, "index", *arguments, "--output", str(tmp_path / "index")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in run.stdout.splitlines() if line.endswith(f": {-signal.SIGKILL}")]
    assert len(lines) == 5, run.stdout + run.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "embed_rows", None)  # every part is there
        manifest = make_index(tmp_path / "index", images_per_part=4, kind="hnsw")
    assert manifest == SearchIndex(tmp_path / "index").manifest
    make_index(tmp_path / "whole", images_per_part=4, kind="hnsw")
    resumed, whole = SearchIndex(tmp_path / "index"), SearchIndex(tmp_path / "whole")
    for level in LEVELS:
        assert resumed.rows(level).to_list() == whole.rows(level).to_list()
        answers = [index.search(level, vectors_of(whole, level)[0], 1) for index in (resumed, whole)]
        np.testing.assert_array_equal(*answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_half_a_part_is_thrown_away(make_index, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_flush", stop_at("facts.json"))
        with pytest.raises(KeyboardInterrupt):
            make_index(tmp_path / "index", images_per_part=4)
    (half,) = (tmp_path / "index.partial" / "parts").iterdir()
    assert half.name.startswith(".")
    make_index(tmp_path / "index", images_per_part=4)
    assert SearchIndex(tmp_path / "index").num_rows("images") == 10


def stop_at(name: str):
    def flush(path: Path) -> None:
        if path.name == name:
            raise KeyboardInterrupt

    return flush


def test_stopped_while_it_is_joined_it_goes_on_from_the_parts(make_index, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "write_index", lambda index, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_index(tmp_path / "index")
    with pytest.raises(ValueError, match=r"index\.partial is there: run the same"):
        SearchIndex(tmp_path / "index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "embed_rows", None)
        make_index(tmp_path / "index")
    assert SearchIndex(tmp_path / "index").num_rows("images") == 10


def test_two_processes_make_the_index_that_one_makes(make_index, model_folder, tmp_path):
    """Takes about 12 s: two processes meet over loopback."""
    script = Path(building.__file__).with_name("search_command.py")
    arguments = ("index", "--model", str(model_folder), "--data", DATA, "--images-per-part", "3")
    outcomes = run_processes(script, 2, *arguments, "--output", str(tmp_path / "two"), timeout_s=600)
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    make_index(tmp_path / "one", images_per_part=3)
    one, two = SearchIndex(tmp_path / "one"), SearchIndex(tmp_path / "two")
    for level in LEVELS:
        assert one.rows(level).to_list() == two.rows(level).to_list()
    assert sum("regions: exact" in output for _, output in outcomes) == 1  # the main process alone reports


def test_another_corpus_or_model_does_not_go_on_with_an_index(make_index, model, processor, tmp_path):
    make_index(tmp_path / "index")
    with pytest.raises(ValueError, match=r"data revision is 'phantom@.*difficulty=0.4' there and 'phantom@.*=0.7' now"):
        make_index(tmp_path / "index", data=f"{DATA},difficulty=0.7")
    with pytest.raises(ValueError, match="data num_images is 10 there and 11 now"):
        make_index(tmp_path / "index", data="phantom:num_test=11,num_train=1")
    other = type(model)(model.config)  # drawn anew
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="weights are"):
        make_index(tmp_path / "index", model=tmp_path / "other")
    assert not (tmp_path / "index.partial").exists()


def test_a_corpus_that_changed_since_the_interruption_is_refused(make_index, tmp_path):
    source = write_jsonl_source(tmp_path / "source", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_index(tmp_path / "index", data=f"jsonl:{source}")
    annotations = source / "annotations.jsonl"
    annotations.write_text(annotations.read_text().replace("Nerve", "Vessel"))
    with pytest.raises(ValueError, match=r"index\.partial holds an index of something else: data revision"):
        make_index(tmp_path / "index", data=f"jsonl:{source}")


def test_a_built_corpus_is_indexed(make_index, tmp_path):
    corpus = small_corpus(tmp_path / "corpus", 10)
    make_index(tmp_path / "index", data=str(corpus.folder), split="train")
    index = SearchIndex(tmp_path / "index")
    assert (index.num_rows("images"), index.num_rows("regions")) == (7, 7)
    assert set(index.column("regions", "finding")) == {"nerve"}


def test_a_split_without_an_image_is_refused(make_index, tmp_path):
    with pytest.raises(ValueError, match=r"no image in split 'test'.*It has phantom: train"):
        make_index(tmp_path / "index", data="phantom:num_test=0,num_train=1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"annotations\.jsonl"):
        make_index(tmp_path / "index", data=f"jsonl:{tmp_path / 'empty'}")
    assert not (tmp_path / "index.partial").exists()


def test_images_without_regions_make_an_index_of_images_alone(make_index, tmp_path):
    source = write_jsonl_source(tmp_path / "source", 4, boxes_xyxy=[], labels=[], mask=None, caption="A neck.")
    make_index(tmp_path / "index", data=f"jsonl:{source}", kind="hnsw")
    index = SearchIndex(tmp_path / "index")
    assert (index.num_rows("images"), index.num_rows("regions")) == (2, 0)
    with pytest.raises(ValueError, match="has no regions; search among its images"):
        index.search(REGIONS, np.zeros(index.width, np.float32), 1)


def test_a_folder_with_something_else_in_it_is_left_alone(make_index, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is there and is no index"):
        make_index(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("name", ["thesis.tex", "plan.json/x", "parts/x"])
def test_a_folder_of_somebody_that_is_called_partial_is_left_alone(name, make_index, tmp_path):
    theirs = tmp_path / "index.partial" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("x")
    (tmp_path / "index.partial" / "notes").write_text("x")
    with pytest.raises(ValueError, match=r"index\.partial is there and is no unfinished index"):
        make_index(tmp_path / "index")
    assert theirs.read_text() == "x"
    assert {path.name for path in theirs.parents[name.count("/")].iterdir()} == {name.partition("/")[0], "notes"}


def test_what_somebody_puts_beside_the_parts_meanwhile_stays(make_index, tmp_path, monkeypatch):
    join = building._join

    def meanwhile(paths):
        (tmp_path / "index.partial" / "notes").write_text("x")
        return join(paths)

    monkeypatch.setattr(building, "_join", meanwhile)
    make_index(tmp_path / "index")
    assert (tmp_path / "index.partial" / "notes").read_text() == "x"
    assert SearchIndex(tmp_path / "index").num_rows("images") == 10


def test_one_launch_at_a_time_makes_an_index(make_index, model_folder, tmp_path):
    (tmp_path / "index.partial").mkdir()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); "
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "index.partial" / "lock")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ValueError, match="another process is making"):
            make_index(tmp_path / "index")
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"images_per_part": -1}, "images_per_part is -1"),
        ({"kind": "ivf"}, "kind 'ivf' is not known; it must be one of auto, exact, hnsw"),
        ({"model": "nowhere"}, "model 'nowhere' has no config.json"),
        ({"data": "phantoms"}, "no known form"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(change, message, model_folder, tmp_path):
    settings = {"model": model_folder, "data": DATA, "output": tmp_path / "index", **change}
    with pytest.raises(ValueError, match=message):
        build_index(IndexSettings(**settings))


def test_the_plan_of_an_unfinished_index_names_no_path_of_this_machine(make_index, tmp_path):
    source = write_jsonl_source(tmp_path / "source", 10)
    make_index(tmp_path / "index", data=f"jsonl:{source}")
    assert str(tmp_path) not in json.dumps(SearchIndex(tmp_path / "index").manifest)
