"""A push goes where and as asked, or not at all; against a Hub of its own on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from built_corpora import rewrite

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.push import plan_push

COMMAND = [sys.executable, "-m", "regionmed_clip.processing.corpus.command_line", "push"]
READ_BACK = """
import json, sys
from datasets import load_dataset
rows = list(load_dataset(sys.argv[1], split="train", streaming=True))
print(json.dumps([[row["image_id"], row["image"].size, row["regions"]] for row in rows]))
"""


@pytest.fixture
def hub(repository):
    """The store of a small Hub and the environment in which programs talk to it."""
    path = repository.parent / "shared" / "tools" / "hub_stub.py"
    if not path.is_file():
        pytest.skip(f"no Hub stub at {path}; it lies beside the checkout where the project is developed")
    spec = importlib.util.spec_from_file_location("hub_stub", path)
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    server, store = stub.serve()
    url = f"http://127.0.0.1:{server.server_port}"
    changes = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    yield store, {**os.environ, **changes}
    server.shutdown()
    server.server_close()


def push(corpus, environment, *options):
    command = [*COMMAND, str(corpus.folder), "--num-processes", "1", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def files_on(store, repo_id):
    return store.repos["dataset", repo_id]["commits"][-1]["files"]


def test_a_corpus_arrives_in_one_commit_and_streams_from_there(built_once, hub):
    store, environment = hub
    done = push(built_once, environment, "--repo-id", "lab/tiny")
    assert (done.returncode, "Pushed: http" in done.stdout) == (0, True), done.stderr
    repo = store.repos["dataset", "lab/tiny"]
    assert repo["private"] is True
    assert len(repo["commits"]) == 2  # the Hub's own first one, and ours
    shards = [
        path.relative_to(built_once.folder).as_posix()
        for s in built_once.splits()
        for path in built_once.shard_paths(s)
    ]
    assert set(files_on(store, "lab/tiny")) - {".gitattributes"} == {
        "README.md",
        "manifest.json",
        "duplicates.jsonl",
        *shards,
    }
    command = [sys.executable, "-c", READ_BACK, "lab/tiny"]
    read = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    expected = [[row["image_id"], [row["width"], row["height"]], row["regions"]] for row in built_once.rows("train")]
    assert json.loads(read.stdout.splitlines()[-1]) == expected


def test_a_second_push_removes_shards_that_are_no_more(built_once, built, hub):
    store, environment = hub
    assert push(built_once, environment, "--repo-id", "lab/tiny").returncode == 0
    old = built.shard_paths("test")[0]
    manifest = json.loads((built.folder / "manifest.json").read_text())
    entry = manifest["splits"]["test"]["shards"][0]
    entry["path"] = "data/test-00000-of-00009.parquet"
    old.rename(built.folder / entry["path"])
    (built.folder / "manifest.json").write_text(json.dumps(manifest))
    assert push(BuiltCorpus(built.folder), environment, "--repo-id", "lab/tiny").returncode == 0
    names = [name for name in files_on(store, "lab/tiny") if name.startswith("data/test")]
    assert names == ["data/test-00000-of-00009.parquet"]


def test_a_private_push_does_not_land_in_a_public_repository(built_once, hub):
    store, environment = hub
    assert push(built_once, environment, "--repo-id", "lab/open", "--public").returncode == 0
    assert store.repos["dataset", "lab/open"]["private"] is False
    done = push(built_once, environment, "--repo-id", "lab/open")
    assert done.returncode == 2
    assert "exists and is public" in done.stderr
    assert len(store.repos["dataset", "lab/open"]["commits"]) == 2


def test_a_wrong_token_is_told_in_one_message(built_once, hub):
    store, environment = hub
    done = push(built_once, {**environment, "HF_TOKEN": "hf_wrong"}, "--repo-id", "lab/tiny")
    assert done.returncode == 2
    assert "the push to lab/tiny failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert store.repos == {}


def test_a_dry_run_shows_the_card_and_uploads_nothing(built_once, hub):
    store, environment = hub
    done = push(built_once, environment, "--repo-id", "lab/tiny", "--dry-run")
    assert done.returncode == 0
    assert 'load_dataset("lab/tiny"' in done.stdout
    assert "Nothing was uploaded" in done.stdout
    assert not any(method in ("POST", "PUT") for method, _, _ in store.log)


def plan(corpus, **options):
    return plan_push(corpus, options.pop("repo_id", "lab/tiny"), show_progress=False, **options)


def test_the_plan_holds_card_manifest_duplicates_and_shards_and_no_local_path(built_once):
    found = plan(built_once)
    assert [name for name, _ in found.files[:3]] == ["README.md", "manifest.json", "duplicates.jsonl"]
    assert all(name.startswith("data/") for name, _ in found.files[3:])
    assert not any(name.startswith("quarantine") for name, _ in found.files)


@pytest.mark.parametrize("repo_id", ["tiny", "lab/tiny/x", "", "lab/", "/tiny", "lab tiny/x"])
def test_a_name_that_is_none_is_refused(repo_id, built_once):
    with pytest.raises(ValueError, match="is no ORG/NAME"):
        plan(built_once, repo_id=repo_id)


def test_a_corpus_that_fails_its_check_is_refused(built):
    corpus = rewrite(built.folder, "train", lambda rows: rows[0].update(impression="Seen by Dr. Quirk."))
    with pytest.raises(ValueError, match=r"fails its check.*\n.*ERROR phi-name: 1 x") as error:
        plan(corpus)
    assert "Quirk" not in str(error.value)
    assert plan(corpus, accepted=("phi-name",)).repo_id == "lab/tiny"


@pytest.mark.parametrize("license_name", ["unknown", "PhysioNet Credentialed Health Data License 1.5.0"])
def test_images_that_may_not_be_passed_on_are_refused_but_privately_and_on_purpose(license_name, built):
    corpus = rewrite(built.folder, "test", lambda rows: rows[0].update(license=license_name))
    for options in ({}, {"is_public": True}, {"is_public": True, "allow_restricted": True}):
        with pytest.raises(ValueError, match=f"holds images under {license_name}"):
            plan(corpus, **options)
    assert plan(corpus, allow_restricted=True).is_public is False
