"""A data set is published whole and looked at whole: no link, no credential in a row, no picture left behind."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
from built_corpora import build, noise, rewrite, write_source

from regionmed_clip.model_cards.dataset_publication import prepare_dataset
from regionmed_clip.processing.corpus.shard_writer import sha256_of_file

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF2h"


@pytest.fixture(scope="module")
def corpus_once(tmp_path_factory):
    fields = {"split": ["train", "test"], "qa": [[{"q": "Is there a nodule?", "a": "yes"}], None]}
    root = write_source(tmp_path_factory.mktemp("s") / "chest", [noise(0), noise(1)], **fields)
    return build(tmp_path_factory.mktemp("c") / "corpus", root, name="tiny").folder


@pytest.fixture
def corpus(corpus_once, tmp_path):
    """A corpus that a test may change."""
    return shutil.copytree(corpus_once, tmp_path / "corpus")


@pytest.fixture
def source(tmp_path):
    """A folder with one source in it, "ward"; its first picture has neither region nor mask."""
    return write_source(tmp_path / "many" / "ward", [noise(0), noise(1)], split=["train", "test"])


def prepare(folder, *accepted):
    return prepare_dataset(
        folder, "lab/a", is_public=True, allow_restricted=False, accepted=accepted, say=lambda _: None
    )


@pytest.mark.parametrize("name", ["ward", "ward/images", "ward/images/000.png", "ward/SOURCE.md"])
def test_a_link_to_a_folder_or_a_file_is_refused_though_all_behind_it_is_sound(name, source, tmp_path):
    place = source.parent / name
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"holds links: {name}; nothing was sent"):
        prepare(source.parent)


def test_a_link_in_a_corpus_is_refused(corpus, tmp_path):
    shutil.move(corpus / "data", tmp_path / "data")
    (corpus / "data").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match="holds links: data; nothing was sent"):
        prepare(corpus)


def test_a_clean_corpus_is_published_with_nothing_to_accept(corpus):
    assert prepare(corpus).notes == ()


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("impression", f"A film. {TOKEN}", r"train row 0: holds a Hugging Face token.*\[secret\]"),
        ("view", "from /home/jane/pacs/a.dcm", r"train row 0: holds a local path.*\[local-path\]"),
    ],
)
def test_what_a_row_of_a_corpus_tells_too_much_is_refused(field, text, reason, corpus):
    rewrite(corpus, "train", lambda rows: rows[0].update({field: text}))
    with pytest.raises(ValueError, match=reason) as error:
        prepare(corpus)
    assert text.split()[-1] not in str(error.value)


def test_a_token_within_an_answer_of_a_row_is_found(corpus):
    rewrite(corpus, "train", lambda rows: rows[0]["qa"][0].update(answer=TOKEN))
    with pytest.raises(ValueError, match=r"train row 0: holds a Hugging Face token"):
        prepare(corpus)


def test_a_local_path_in_a_corpus_may_pass_and_is_told(corpus):
    rewrite(corpus, "train", lambda rows: rows[0].update(view="from /home/jane/pacs/a.dcm"))
    assert "train row 0: holds a local path" in prepare(corpus, "local-path").notes[0]
    with pytest.raises(ValueError, match="--accept nonsense is no rule"):
        prepare(corpus, "nonsense")


def test_what_many_rows_tell_is_one_line(tmp_path):
    images, told = [noise(seed) for seed in range(4)], ["a film", TOKEN, TOKEN + " again", TOKEN]
    root = write_source(tmp_path / "chest", images, split=["train"] * 3 + ["test"], caption=told)
    corpus = build(tmp_path / "corpus", root, name="tiny").folder
    with pytest.raises(ValueError, match="holds a Hugging Face token, and 1 other rows; correct") as error:
        prepare(corpus)
    assert str(error.value).count("a Hugging Face token") == 2  # of train and of test


def test_what_the_manifest_tells_too_much_is_refused(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    told = {"note": f"Dr. Jane Doe, {TOKEN}, /home/jane/x"}
    (corpus / "manifest.json").write_text(json.dumps({**manifest, **told}))
    with pytest.raises(ValueError, match="data set is not published") as error:
        prepare(corpus)
    for rule in ("secret", "local-path", "phi-name"):
        assert f"[{rule}]" in str(error.value)


def test_a_name_among_the_duplicates_is_refused_and_a_number_there_is_a_pseudonym(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps({**manifest, "num_near_duplicates": 1}))
    path, line = corpus / "duplicates.jsonl", {"kind": "near", "first": "study 2019-03-04", "second": "1.2.840.1.2.3.4"}
    path.write_text(json.dumps(line) + "\n")
    assert prepare(corpus).notes == ()
    path.write_text(json.dumps({**line, "first": "DOE^JANE"}) + "\n")
    with pytest.raises(ValueError, match=r"duplicates.jsonl: line 1 holds what looks like .*\[phi-name\]"):
        prepare(corpus)


def test_what_the_head_of_a_shard_tells_too_much_is_refused(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    path = corpus / entry["path"]
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"author": b"Dr. Jane Doe " + TOKEN.encode()}), path)
    entry |= {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="data set is not published") as error:
        prepare(corpus)
    for rule in ("secret", "phi-name"):
        assert f"{entry['path']} header" in str(error.value)
        assert f"[{rule}]" in str(error.value)


def edit_row(source, number, **changes):
    """None; a row of the source has other fields."""
    path = source / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_picture_in_any_folder_is_published_with_its_row(source):
    (source / "scans").mkdir()
    (source / "images" / "000.png").rename(source / "scans" / "000.png")
    edit_row(source, 0, image="scans/000.png")
    pictures = {name for name in prepare(source).files if name.endswith(".png")}
    assert pictures == {"scans/000.png", "images/001.png", "masks/001.png"}
    (source / "scans" / "000.png").write_bytes((source / "images" / "001.png").read_bytes() + b"Dr. Jane Doe")
    with pytest.raises(ValueError, match=r"scans/000.png: .*\[picture-text\]"):
        prepare(source)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [("masks/absent.png", "names masks/absent.png, which is not there"), ("../../a.png", "must lie within")],
)
def test_a_mask_that_is_not_in_the_folder_is_refused(mask, reason, source):
    edit_row(source, 1, mask=mask)
    with pytest.raises(ValueError, match=reason):
        prepare(source)


@pytest.mark.parametrize("name", ["ct[2024]", "a*b", "v1?", 'a"b', "ab---", "_x", "a\nb", "-a"])
def test_a_name_that_cannot_be_loaded_is_refused_in_a_folder_of_sources(name, source):
    moved = source.rename(source.parent / name)
    with pytest.raises(ValueError, match=r"cannot be loaded by that name: .* Rename the folder"):
        prepare(source.parent)
    assert prepare(moved).files  # alone its name is no part of what is loaded


@pytest.mark.parametrize("name", ["ct-2024_v1.0", "2024", "my ward"])
def test_a_plain_name_is_the_configuration(name, source):
    source.rename(source.parent / name)
    assert f'"lab/a", "{name}", split="annotations"' in prepare(source.parent).files["README.md"].decode()


def test_a_built_corpus_is_planned_and_one_that_nobody_may_pass_on_is_not(tmp_path):
    told = {"is_public": True, "allow_restricted": False, "say": lambda _: None}
    for license_name in ("CC BY 4.0", "PhysioNet Credentialed Health Data License 1.5.0"):
        place = tmp_path / license_name[:2]
        images, splits = [noise(0), noise(1)], ["train", "test"]
        root = write_source(place / "chest", images, split=splits, license_name=license_name)
        corpus = build(place / "corpus", root, name="tiny")
        if license_name.startswith("CC"):
            publication = prepare_dataset(corpus.folder, "lab/tiny", **told)
            assert publication.files["README.md"].startswith(b"---\n")
            assert publication.files["manifest.json"] == corpus.folder / "manifest.json"
            assert publication.message == f"Corpus {corpus.revision}"
        else:
            with pytest.raises(ValueError, match="which nobody may pass on as far as we know"):
                prepare_dataset(corpus.folder, "lab/tiny", **told)


def test_a_source_folder_is_published_by_its_rows_and_a_patient_in_one_is_found(tmp_path):
    told = {"is_public": True, "allow_restricted": False, "say": lambda _: None}
    root = write_source(tmp_path / "chest", [noise(0), noise(1)], split=["train", "test"])
    (root / "notes.txt").write_text("not of the format")
    (root / "images" / "unnamed.png").write_bytes((root / "images" / "000.png").read_bytes())
    publication = prepare_dataset(root, "lab/chest", **told)
    assert set(publication.files) == {
        "README.md", "SOURCE.md", "annotations.jsonl", "images/000.png", "images/001.png", "masks/001.png",
    }  # fmt: skip
    rows = (root / "annotations.jsonl").read_text().splitlines()
    (root / "annotations.jsonl").write_text(f'{rows[0]}\n{rows[1][:-1]}, "meta": {{"by": "Dr. Jane Doe"}}}}\n')
    with pytest.raises(ValueError, match=r"annotations.jsonl: line 2 holds what looks like .* \[phi-name\]"):
        prepare_dataset(root, "lab/chest", **told)
    assert "phi-name" in prepare_dataset(root, "lab/chest", accepted=["phi-name"], **told).notes[0]
    (root / "images" / "a.dcm").write_bytes(b"DICM")
    with pytest.raises(ValueError, match="their headers can be"):
        prepare_dataset(root, "lab/chest", accepted=["phi-name"], **told)
