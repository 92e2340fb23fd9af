"""A push goes where and as asked, or not at all; against a Hub of its own on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from built_corpora import rewrite
from hub_clients import a_hub, talking_to
from huggingface_hub import CommitOperationAdd

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.hub_push import MANIFEST_FILE, Upload
from regionmed_clip.processing.corpus.hub_push import push as push_files
from regionmed_clip.processing.corpus.push import plan_push

# huggingface_hub's own way of sending a large file without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
COMMAND = [sys.executable, "-m", "regionmed_clip.processing.corpus.command_line", "push"]
READ_BACK = """
import json, sys
from datasets import load_dataset
rows = list(load_dataset(sys.argv[1], split="train", streaming=True))
print(json.dumps([[row["image_id"], row["image"].size, row["regions"]] for row in rows]))
"""


@pytest.fixture
def hub(repository, tmp_path):
    """The tests' own Hub, and the environment in which programs talk to it."""
    with a_hub("own", repository) as hub:
        yield hub, {**os.environ, **hub.environment(tmp_path)}


def push(corpus, environment, *options):
    command = [*COMMAND, str(corpus.folder), "--num-processes", "1", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def files_on(hub, repo_id):
    return hub.own.hub.repositories["dataset", repo_id].head("main").files


def test_a_corpus_arrives_in_one_commit_and_streams_from_there(built_once, hub):
    hub, environment = hub
    done = push(built_once, environment, "--repo-id", "lab/tiny")
    assert (done.returncode, "Pushed: http" in done.stdout) == (0, True), done.stderr
    repo = hub.own.hub.repositories["dataset", "lab/tiny"]
    assert repo.is_private
    assert len(repo.history("main")) == 2  # the Hub's own first one, and ours
    shards = [
        path.relative_to(built_once.folder).as_posix()
        for s in built_once.splits()
        for path in built_once.shard_paths(s)
    ]
    assert set(files_on(hub, "lab/tiny")) - {".gitattributes", MANIFEST_FILE} == {
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
    hub, environment = hub
    assert push(built_once, environment, "--repo-id", "lab/tiny").returncode == 0
    old = built.shard_paths("test")[0]
    manifest = json.loads((built.folder / "manifest.json").read_text())
    entry = manifest["splits"]["test"]["shards"][0]
    entry["path"] = "data/test-00000-of-00009.parquet"
    old.rename(built.folder / entry["path"])
    (built.folder / "manifest.json").write_text(json.dumps(manifest))
    assert push(BuiltCorpus(built.folder), environment, "--repo-id", "lab/tiny").returncode == 0
    names = [name for name in files_on(hub, "lab/tiny") if name.startswith("data/test")]
    assert names == ["data/test-00000-of-00009.parquet"]


def test_after_a_publication_a_push_removes_what_that_put_there_and_leaves_the_rest(built_once, hub):
    hub, environment = hub
    shard = built_once.shard_paths("train")[0]
    files = {"README.md": b"---\nlicense: mit\n---\n", "data/train-00007-of-00008.parquet": shard}
    with talking_to(hub):  # as `regionmed-publish` does
        push_files(Upload(repo_id="lab/tiny", repo_type="dataset", files=files, message="Publish"))
        operation = CommitOperationAdd("figure.svg", b"theirs")
        hub.api().create_commit("lab/tiny", [operation], commit_message="theirs", repo_type="dataset")
    done = push(built_once, environment, "--repo-id", "lab/tiny")
    assert "Removed, of an earlier publication: data/train-00007-of-00008.parquet." in done.stdout, done.stderr
    assert "Left there, being of others or changed by them: figure.svg." in done.stdout
    assert "data/train-00007-of-00008.parquet" not in files_on(hub, "lab/tiny")


def test_a_private_push_does_not_land_in_a_public_repository(built_once, hub):
    hub, environment = hub
    assert push(built_once, environment, "--repo-id", "lab/open", "--public").returncode == 0
    assert hub.own.hub.repositories["dataset", "lab/open"].is_private is False
    done = push(built_once, environment, "--repo-id", "lab/open")
    assert done.returncode == 2
    assert "exists and is public" in done.stderr
    assert len(hub.own.hub.repositories["dataset", "lab/open"].history("main")) == 2


def test_a_wrong_token_is_told_in_one_message(built_once, hub):
    hub, environment = hub
    done = push(built_once, {**environment, "HF_TOKEN": "hf_wrong"}, "--repo-id", "lab/tiny")
    assert done.returncode == 2
    assert "does not know this token" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.own.hub.repositories == {}


def test_a_dry_run_shows_the_card_and_uploads_nothing(built_once, hub):
    hub, environment = hub
    done = push(built_once, environment, "--repo-id", "lab/tiny", "--dry-run")
    assert done.returncode == 0
    assert 'load_dataset("lab/tiny"' in done.stdout
    assert "Nothing was uploaded" in done.stdout
    assert hub.own.requests == []


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
