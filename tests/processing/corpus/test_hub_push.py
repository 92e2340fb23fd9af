"""A push goes where and as asked, or not at all; against the tests' own Hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hub_clients import a_hub, talking_to
from huggingface_hub import CommitOperationAdd

from regionmed_clip.processing.corpus.hub_push import (
    MANIFEST_FILE,
    Upload,
    check_access,
    check_target,
    push,
    told_as_value_errors,
)

# huggingface_hub's own way of sending a large file without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
CARD = b"---\nlicense: apache-2.0\n---\n"
PUSH = """
import sys
from pathlib import Path
from regionmed_clip.processing.corpus.hub_push import Upload, push
files = {path.name: path for path in sorted(Path(sys.argv[1]).iterdir())}
print(push(Upload(repo_id="lab/a", repo_type="model", files=files, message="Publish")).commit)
"""


@pytest.fixture
def hub(repository):
    with a_hub("own", repository) as hub, talking_to(hub):
        yield hub


@pytest.fixture
def upload(tmp_path):
    """A card and weights for a new model."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    files = {"README.md": CARD, "model.safetensors": tmp_path / "model.safetensors"}
    return Upload(repo_id="lab/a", repo_type="model", files=files, message="Publish")


def files_on(hub, revision=None):
    return set(hub.api().list_repo_files("lab/a", revision=revision)) - {".gitattributes", MANIFEST_FILE}


def others_put(hub, *names, kind="model"):
    """None; somebody commits files of theirs."""
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    hub.api().create_repo("lab/a", repo_type=kind, private=True, exist_ok=True, **sdk)
    operations = [CommitOperationAdd(name, CARD + b"theirs") for name in names]
    hub.api().create_commit("lab/a", operations, commit_message="theirs", repo_type=kind)


def test_a_first_push_makes_a_private_repository_with_one_commit(hub, upload):
    pushed = push(upload)
    assert (pushed.is_private, pushed.has_changed, pushed.removed) == (True, True, ())
    assert pushed.url == f"{hub.url}/lab/a"
    assert [commit.title for commit in hub.api().list_repo_commits("lab/a")] == ["Publish", "initial commit"]
    assert files_on(hub) == {"README.md", "model.safetensors"}


def test_the_same_again_commits_and_sends_nothing(hub, upload):
    first, second = push(upload), push(upload)
    assert (second.has_changed, second.commit) == (False, first.commit)
    assert [size for _, size in hub.own.received] == [7]


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_second_push_removes_what_the_first_put_there_and_leaves_what_others_did(hub, upload, kind):
    upload = replace(upload, repo_type=kind)
    old = {"roi_old.py": b"x = 1", "samples/a.png": b"png", "data/old.json": b"old"}
    push(replace(upload, files={**upload.files, **old}))
    others_put(hub, "tool.sh", "banner.svg", "samples/b.png", kind=kind)
    pushed = push(upload)
    assert pushed.removed == ("data/old.json", "roi_old.py", "samples/a.png")
    assert pushed.kept == ("banner.svg", "samples/b.png", "tool.sh")
    names = set(hub.api().list_repo_files("lab/a", repo_type=kind)) - {".gitattributes", MANIFEST_FILE}
    assert names == {"README.md", "model.safetensors", "banner.svg", "samples/b.png", "tool.sh"}
    third = push(upload)  # what the first put there is forgotten by now
    assert (third.removed, third.kept, third.has_changed) == ((), pushed.kept, False)


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_data_sets_and_spaces_have_repositories_of_their_own(hub, upload, kind):
    assert push(replace(upload, repo_type=kind)).url == f"{hub.url}/{kind}s/lab/a"
    assert set(hub.own.hub.repositories) == {(kind, "lab/a")}


def test_a_repository_of_others_loses_nothing_and_what_is_written_over_is_told(hub, upload):
    others_put(hub, "README.md", "code.py", "notes.json")
    pushed = push(upload)
    assert (pushed.removed, pushed.kept) == ((), ("code.py", "notes.json"))
    assert pushed.replaced == ("README.md",)
    assert files_on(hub) == {"README.md", "model.safetensors", "code.py", "notes.json"}
    assert push(upload).replaced == ()  # ours by now


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("model", "adapter_config.json"),
        ("model", "model-00001-of-00002.safetensors"),
        ("model", "model.safetensors.index.json"),
        ("model", "pytorch_model.bin"),
        ("model", "special_tokens_map.json"),
        ("model", "additional_chat_templates/chat.jinja"),
        ("space", "model/additional_chat_templates/chat.jinja"),
        ("space", "model/adapter_config.json"),
        ("space", "torch.py"),
        ("space", "gradio/__init__.py"),
        ("space", "pre-requirements.txt"),
        ("space", "packages.txt"),
        ("dataset", "data/train-00000-of-00002.parquet"),
    ],
)
def test_somebodys_file_that_would_be_loaded_with_ours_is_refused(hub, upload, kind, name):
    mine = {"model": "config.json", "space": "model/config.json", "dataset": "data/train-00000-of-00001.parquet"}
    upload = replace(upload, repo_type=kind, files={**upload.files, mine[kind]: b"{}"})
    others_put(hub, name, kind=kind)
    before = hub.api().list_repo_files("lab/a", repo_type=kind)
    with pytest.raises(ValueError, match=f"lab/a holds {name}, which no publication of ours put there.*Delete it"):
        push(upload)
    assert hub.api().list_repo_files("lab/a", repo_type=kind) == before


def test_weights_in_parts_give_way_to_weights_in_one(hub, upload):
    parts = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "config.json": b"{}"}
    push(replace(upload, files={"README.md": CARD, **parts}))
    pushed = push(replace(upload, files={**upload.files, "config.json": b"{}"}))
    assert pushed.removed == ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    assert files_on(hub) == {"README.md", "config.json", "model.safetensors"}


def test_a_list_of_published_names_that_is_none_is_told(hub, upload):
    push(upload)
    others_put(hub, MANIFEST_FILE)
    with pytest.raises(ValueError, match=r"\.regionmed_publication\.json of lab/a is not what .* nothing was sent"):
        push(upload)


def test_a_public_repository_takes_nothing_without_the_word(hub, upload):
    hub.api().create_repo("lab/a", private=False)
    told = {"create_pr": False}
    with pytest.raises(ValueError, match="exists and is public, and --public is not given; nothing was sent"):
        check_access("lab/a", "model", is_public=False, **told)
    with pytest.raises(ValueError, match="is public, and --public is not given; nothing was sent"):
        push(upload)
    assert files_on(hub) == set()
    check_access("lab/a", "model", is_public=True, **told)
    assert push(replace(upload, is_public=True)).is_private is False


def test_a_pull_request_leaves_main_as_it_is(hub, upload):
    hub.api().create_repo("lab/a", private=False)
    with talking_to(hub, "hf_stranger"):
        with pytest.raises(ValueError, match="is public, and --public is not given; nothing was sent"):
            push(replace(upload, create_pr=True))  # anyone reads a pull request on a public repository
        pushed = push(replace(upload, create_pr=True, is_public=True))
    assert pushed.url == f"{hub.url}/lab/a/discussions/1"
    assert pushed.revision == "refs/pr/1"
    assert files_on(hub) == set()
    assert files_on(hub, "refs/pr/1") == {"README.md", "model.safetensors"}


def test_a_tag_pins_the_commit_and_is_never_moved(hub, upload):
    first = push(replace(upload, tag="v1"))
    push(replace(upload, files={**upload.files, "README.md": CARD + b"more"}))
    assert hub.api().repo_info("lab/a", revision="v1").sha == first.commit
    before = hub.api().list_repo_commits("lab/a")
    with pytest.raises(ValueError, match="has a tag 'v1' on other files, and tags stay where they are; nothing was se"):
        push(replace(upload, tag="v1", files={**upload.files, "README.md": CARD + b"most"}))
    assert [one.commit_id for one in hub.api().list_repo_commits("lab/a")] == [one.commit_id for one in before]


def test_a_finished_push_with_a_tag_is_repeated(hub, upload):
    first, second = push(replace(upload, tag="v1")), push(replace(upload, tag="v1"))
    assert (second.has_changed, second.commit) == (False, first.commit)
    others_put(hub, "banner.svg")
    assert push(replace(upload, tag="v1")).has_changed is False
    assert hub.api().repo_info("lab/a", revision="v1").sha == first.commit


def test_what_others_edited_after_a_publication_is_theirs(hub, upload):
    push(replace(upload, files={**upload.files, "notes.md": b"ours", "old.md": b"old"}))
    others_put(hub, "README.md", "notes.md")  # as the Hub's page lets anyone of the group do
    pushed = push(upload)
    assert (pushed.replaced, pushed.kept, pushed.removed) == (("README.md",), ("notes.md",), ("old.md",))
    assert files_on(hub) == {"README.md", "model.safetensors", "notes.md"}
    assert list(pushed.lines()) == [
        "Removed, of an earlier publication: old.md.",
        "Left there, being of others or changed by them: notes.md.",
        "Replaced, though it was of others or changed by them (the commit before keeps it): README.md.",
    ]
    assert push(upload).replaced == ()  # ours again


def test_somebodys_file_with_the_very_content_of_ours_is_not_called_replaced(hub, upload):
    others_put(hub, "README.md")
    assert push(replace(upload, files={**upload.files, "README.md": CARD + b"theirs"})).replaced == ()


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "no token"),
        ("hf_unknown", "does not know this token"),
        ("hf_reader", "may not write there, for it only reads"),
        ("hf_fine_reader", "may not write there, for it only reads"),
        ("hf_stranger", "may not write there; it is of stranger, and lab is none of these"),
    ],
)
def test_without_the_right_to_write_nothing_is_asked_for(hub, token, reason):
    with talking_to(hub, token), pytest.raises(ValueError, match=reason):
        check_access("lab/a", "model", is_public=False, create_pr=False)
    assert hub.own.hub.repositories == {}


@pytest.mark.parametrize("token", ["hf_unknown", "hf_reader", "hf_stranger"])
def test_without_the_right_to_write_nothing_is_made(hub, upload, token):
    with talking_to(hub, token), pytest.raises(ValueError, match=r"does not know this token|may not write there"):
        push(upload)
    assert hub.own.hub.repositories == {}


def test_a_stranger_may_propose_a_change(hub):
    hub.api().create_repo("lab/a", private=False)
    with talking_to(hub, "hf_stranger"):
        check_access("lab/a", "model", is_public=True, create_pr=True)


@pytest.mark.parametrize("what", ["is gone", "is a folder"])
def test_a_file_of_this_machine_is_not_called_the_connection(hub, upload, tmp_path, what):
    place = tmp_path / "notes.json"
    if what == "is a folder":
        place.mkdir()
    with pytest.raises(ValueError, match=r"lab/a: .*notes\.json'; that is of this machine"):
        push(replace(upload, files={**upload.files, "notes.json": place}))


def test_a_full_disk_is_not_called_the_connection():
    with (
        pytest.raises(ValueError, match="No space left on device; that is of this machine"),
        told_as_value_errors("a/b"),
    ):
        raise RuntimeError("Error while uploading") from OSError(28, "No space left on device")


def test_a_pull_request_needs_a_repository(hub):
    with pytest.raises(ValueError, match=r"a pull request needs one that does\. Leave --create-pr out"):
        check_access("lab/a", "model", is_public=False, create_pr=True)


def test_no_server_and_no_network_are_told(hub, upload, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        push(upload)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"the connection to the Hub failed \(ConnectError.*Run the same command again"
    ):
        push(upload)


@pytest.mark.parametrize(
    ("repo_id", "options", "reason"),
    [
        ("no-namespace", {}, "no ORG/NAME"),
        ("a/b/c", {}, "no ORG/NAME"),
        ("lab/../x", {}, "no ORG/NAME"),
        ("lab/a\n", {}, "no ORG/NAME"),
        ("lab/a", {"tag": "v 1"}, "is none; it must be letters"),
        ("lab/a", {"tag": "main"}, "is none; it must be letters"),
        ("lab/a", {"tag": "v1", "create_pr": True}, "tag it once it is merged"),
    ],
)
def test_a_target_that_is_none_is_refused(repo_id, options, reason):
    with pytest.raises(ValueError, match=reason):
        check_target(repo_id, **options)


def test_a_killed_upload_shows_nothing_and_the_next_one_sends_only_what_is_missing(hub, tmp_path):
    """One file arrives, the other hangs, the process is killed; about 10 s: a process of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_bytes(CARD)
    (folder / "a.safetensors").write_bytes(b"a" * 1000)
    (folder / "b.safetensors").write_bytes(b"b" * 2000)
    hub.own.hold.add(hashlib.sha256(b"b" * 2000).hexdigest())
    command = [sys.executable, "-c", PUSH, str(folder)]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, env=hub.environment(tmp_path), **nowhere)
    assert hub.own.holding.wait(120)
    give_up_at = time.monotonic() + 60
    while not hub.own.received and time.monotonic() < give_up_at:
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert [size for _, size in hub.own.received] == [1000]
    assert files_on(hub) == set()
    hub.own.hold.clear()
    files = {path.name: path for path in sorted(folder.iterdir())}
    pushed = push(Upload(repo_id="lab/a", repo_type="model", files=files, message="Publish"))
    assert [size for _, size in hub.own.received] == [1000, 2000]
    assert pushed.has_changed
    assert files_on(hub) == {"README.md", "a.safetensors", "b.safetensors"}
