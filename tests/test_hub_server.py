"""The tests' own Hub refuses and tells what the Hub does; seen through huggingface_hub's client."""

from __future__ import annotations

import pytest
from hub_clients import a_hub, talking_to
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

# huggingface_hub's own way of sending a large file without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
CARD = b"---\nlicense: apache-2.0\n---\n"


@pytest.fixture
def hub(repository):
    with a_hub("own", repository) as hub, talking_to(hub):
        yield hub


def commit(api, files, **options):
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit("lab/a", operations=operations, commit_message="change", **options)


def test_a_small_and_a_large_file_come_back_as_they_went(hub, tmp_path):
    api = hub.api()
    api.create_repo("lab/a", private=True)
    done = commit(api, {"README.md": CARD, "w.safetensors": b"weights" * 99})
    assert sorted(api.list_repo_files("lab/a")) == [".gitattributes", "README.md", "w.safetensors"]
    infos = {info.path: info for info in api.get_paths_info("lab/a", ["README.md", "w.safetensors"])}
    assert infos["README.md"].lfs is None
    assert infos["README.md"].blob_id == "154df8298fab5ecf322016157858e08cd1bccbe1"  # git hash-object
    assert infos["w.safetensors"].lfs.size == 693
    folder = api.snapshot_download("lab/a", revision=done.oid, local_dir=tmp_path / "copy")
    assert (tmp_path / "copy" / "w.safetensors").read_bytes() == b"weights" * 99
    assert folder == str(tmp_path / "copy")


def test_what_is_the_same_is_not_committed_again(hub):
    api = hub.api()
    api.create_repo("lab/a")
    first, second = (commit(api, {"README.md": CARD, "w.safetensors": b"weights"}) for _ in range(2))
    assert first.oid == second.oid
    assert [size for _, size in hub.own.received] == [7]


def test_a_private_repository_is_unknown_to_strangers(hub):
    hub.api().create_repo("lab/a", private=True)
    for token in (None, "hf_stranger"):
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).repo_info("lab/a")
    assert hub.api("hf_reader").repo_info("lab/a").private


@pytest.mark.parametrize(("token", "status"), [("hf_reader", 403), ("hf_stranger", 403), ("hf_unknown", 401)])
def test_who_may_not_write_is_refused(hub, token, status):
    hub.api().create_repo("lab/a")
    with pytest.raises(HfHubHTTPError) as error:
        commit(hub.api(token), {"README.md": CARD})
    assert error.value.response.status_code == status
    with pytest.raises(HfHubHTTPError):
        hub.api(token).create_repo("lab/b")


def test_a_commit_on_an_old_parent_and_a_missing_file_are_refused(hub):
    api = hub.api()
    api.create_repo("lab/a")
    before = api.repo_info("lab/a").sha
    commit(api, {"README.md": CARD})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        commit(api, {"a.txt": b"a"}, parent_commit=before)
    with pytest.raises(HfHubHTTPError):
        api.create_commit("lab/a", operations=[CommitOperationDelete("absent.txt")], commit_message="change")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("lab/a", revision="v9")


def test_a_pull_request_leaves_main_alone_and_can_be_read(hub):
    hub.api().create_repo("lab/a", private=False)
    done = commit(hub.api("hf_stranger"), {"README.md": CARD}, create_pr=True)
    assert done.pr_revision == "refs/pr/1"
    assert hub.api().list_repo_files("lab/a") == [".gitattributes"]
    assert "README.md" in hub.api().list_repo_files("lab/a", revision="refs/pr/1")


def test_a_tag_stays_where_it_was_set(hub):
    api = hub.api()
    api.create_repo("lab/a")
    first = commit(api, {"README.md": CARD})
    api.create_tag("lab/a", tag="v1")
    commit(api, {"README.md": CARD + b"more"})
    assert api.repo_info("lab/a", revision="v1").sha == first.oid
    with pytest.raises(HfHubHTTPError):
        api.create_tag("lab/a", tag="v1")


def test_a_card_without_metadata_is_refused(hub):
    hub.api().create_repo("lab/a")
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(hub.api(), {"README.md": b"# title"})
