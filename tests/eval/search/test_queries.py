"""Asking an index: by image, box, text and two of them, narrowed, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("faiss", reason="pip install -e '.[search]'")

from regionmed_clip.eval.search import search_index
from regionmed_clip.eval.search.corpus_rows import CorpusImages
from regionmed_clip.eval.search.queries import Searcher
from regionmed_clip.eval.search.search_command import main
from regionmed_clip.eval.search.search_index import SearchIndex
from regionmed_clip.eval.tasks.embedding import embed_texts
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

DATA = "phantom:num_test=10,num_train=1"


@pytest.fixture(scope="module")
def searcher(index, model, processor) -> Searcher:
    return Searcher(index, model, processor)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """The files of the ten indexed phantoms."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, record in enumerate(CorpusImages(DATA, "test").records(0, 10)):
        (folder / f"{number}.png").write_bytes(record.image)
    return sorted(folder.iterdir())


def test_an_image_finds_itself_first(searcher, pictures):
    hits = searcher.search(pictures[3], k=2)
    assert (hits[0]["row"], hits[0]["rank"], hits[0]["level"]) == (3, 1, "images")
    assert hits[0]["cosine"] == pytest.approx(1.0, abs=1e-5)  # float32
    assert hits[0]["cosine"] >= hits[1]["cosine"]
    assert "embedding" not in hits[0]


def test_a_box_of_an_image_finds_its_own_region_first(searcher, pictures):
    row = searcher.index.row("regions", 5)
    hits = searcher.search(pictures[row["image_row"]], row["box"], k=3)
    assert (hits[0]["row"], hits[0]["level"], hits[0]["description"]) == (5, "regions", row["description"])
    assert hits[0]["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_a_text_finds_the_regions_of_the_largest_cosine_with_it(searcher, model, processor):
    text = searcher.index.row("regions", 0)["description"]
    wanted = np.stack(searcher.index.column("regions", "embedding")) @ embed_texts(model, processor, [text])[0]
    hits = searcher.search(text=text, k=4)
    np.testing.assert_allclose([hit["cosine"] for hit in hits], np.sort(wanted)[::-1][:4], atol=1e-6)


def test_box_and_text_ask_by_the_sum_of_their_unit_embeddings(searcher, pictures):
    row = searcher.index.row("regions", 5)
    given = pictures[row["image_row"]], row["box"]
    total = searcher.embed(*given) + searcher.embed(text="a nodule")
    np.testing.assert_allclose(searcher.embed(*given, "a nodule"), total / np.linalg.norm(total), atol=1e-6)


def test_hits_are_of_the_level_that_is_asked_for(searcher, pictures):
    row = searcher.index.row("regions", 5)
    assert searcher.search(pictures[row["image_row"]], row["box"], among="images")[0]["level"] == "images"
    assert searcher.search(pictures[0], among="regions")[0]["level"] == "regions"
    with pytest.raises(ValueError, match="level 'patients' is not known; an index has images and regions"):
        searcher.search(pictures[0], among="patients")


def test_the_graph_and_looking_at_all_agree(searcher, pictures):
    k = max(1, searcher.index.num_rows("regions") // 10)  # few enough for the graph
    by_graph, exactly = (searcher.search(text="a cyst", k=k, is_exact=exact) for exact in (False, True))
    assert [hit["row"] for hit in by_graph] == [hit["row"] for hit in exactly]


def test_a_number_of_hits_may_be_numpys(searcher):
    assert len(searcher.search(text="a cyst", k=np.int64(3))) == 3


def test_more_hits_than_rows_gives_every_row_once(searcher, pictures):
    assert sorted(hit["row"] for hit in searcher.search(pictures[0], k=10**6)) == list(range(10))


def test_hits_can_be_narrowed(searcher, pictures):
    finding = searcher.index.row("regions", 2)["finding"]
    hits = searcher.search(text="a nodule", k=100, where={"finding": finding})
    assert {hit["finding"] for hit in hits} == {finding}
    assert len(hits) == searcher.index.column("regions", "finding").count(finding)
    with pytest.raises(ValueError, match="no region has finding='unicorn'; the index has '"):
        searcher.search(text="a nodule", where={"finding": "unicorn"})
    with pytest.raises(ValueError, match="images cannot be narrowed by 'finding'; they can by source, modality"):
        searcher.search(pictures[0], where={"finding": finding})


def test_the_querys_own_picture_can_be_left_out(searcher, pictures):
    hits = searcher.search(pictures[3], k=10, has_others_only=True)
    assert sorted(hit["row"] for hit in hits) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    row = searcher.index.row("regions", 5)
    hits = searcher.search(pictures[row["image_row"]], row["box"], k=100, has_others_only=True)
    assert row["image_row"] not in {hit["image_row"] for hit in hits}
    with pytest.raises(ValueError, match="give the image as a path"):
        searcher.search(text="a nodule", has_others_only=True)


def test_other_images_of_the_same_patient_are_left_out_too(searcher, pictures, monkeypatch):
    columns = {"sha256": searcher.index.column("images", "sha256"), "source": ["s"] * 10}
    columns["patient_id"] = ["p", "q", None, "q", *[None] * 6]
    monkeypatch.setattr(searcher.index, "column", lambda level, name: columns[name])
    hits = searcher.search(pictures[3], k=10, has_others_only=True)
    assert sorted(hit["row"] for hit in hits) == [0, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "the query is empty"),
        ({"box": [0, 0, 5, 5], "text": "x"}, "a box and no image"),
        ({"text": "x", "window": "lung"}, "image settings and no image"),
        ({"text": "  "}, "it must say something"),
        ({"image": 0, "box": [10, 10, 900, 20]}, "lies outside the image of 1"),
        ({"image": 0, "box": [20, 20, 10, 10]}, "inverted or empty"),
        ({"image": 0, "box": [float("nan"), 0, 5, 5]}, "is not finite"),
        ({"image": 0, "box": [1, 2, 3]}, "4 numbers|four"),
        ({"image": 0, "k": 0}, "k is 0; it must be a whole number of at least 1"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": 0, "k": 1.5}, "k is 1.5; it must be a whole number"),
        ({"text": 5}, "text is 5; it must say something"),
        ({"text": "\ud800"}, r"the text '\\ud800' is no Unicode text"),
        ({"text": "x", "where": ["CT"]}, r"where is \['CT'\]; it must be a dict"),
        ({"text": "x", "where": {"modality": "\ud800"}}, r"the text '\\ud800' is no Unicode text"),
        ({"text": "x", "where": {"modality": 5}}, "where has modality=5; a value must be a text"),
        ({"text": "x", "where": {"modality": ["CT"]}}, r"where has modality=\['CT'\]; a value must be a text"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(searcher, pictures, query, message):
    if query.get("image") == 0:
        query = {**query, "image": pictures[0]}
    with pytest.raises(ValueError, match=message):
        searcher.search(**query)


def test_a_box_that_the_models_frame_crops_away_is_refused(searcher, processor, pictures, monkeypatch):
    size = {"shortest_edge": 128}, {"height": 32, "width": 32}
    cropping = RegionMedClipImageProcessor(
        geometry="source", size=size[0], crop_size=size[1], do_center_crop=True, patch_size=8
    )
    monkeypatch.setattr(searcher, "processor", RegionMedClipProcessor(cropping, processor.tokenizer))
    with pytest.warns(UserWarning, match="region 0"), pytest.raises(ValueError, match="outside what the model sees"):
        searcher.search(pictures[0], [0, 0, 4, 4])


def test_a_text_that_is_not_read_to_its_end_is_told(searcher):
    with pytest.warns(UserWarning, match="of which the model reads the first 32"):
        searcher.search(text="a nodule " * 40, k=1)


def test_another_models_index_is_refused(index, model, processor):
    torch.manual_seed(7)
    with pytest.raises(ValueError, match="was made with another model: weights are"):
        Searcher(index, type(model)(model.config).eval(), processor)
    bigger = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8, image_mean=[0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="the same weights embed a test image otherwise"):
        Searcher(index, model, RegionMedClipProcessor(bigger, processor.tokenizer))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"format": 1}', r"has format 1; this version reads 2\. Make the index anew"),
        ('{"format": 2}', "is damaged"),
        ('{"format": 2, "width": 2, "model": {}, "levels": {"images": {}, "regions": {}}}', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(content, message, tmp_path):
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        SearchIndex(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "ivf"),
        ("kind", []),
        ("file", "../regions.faiss"),
        ("num_rows", True),
        ("num_rows", -5),
        ("rows_sha256", {}),
        ("rows_sha256", []),
        ("rows_sha256", {"../search.json": ""}),
    ],
)
def test_a_manifest_that_says_what_no_index_is_is_refused(index, tmp_path, name, value):
    manifest = json.loads((index.folder / "search.json").read_text())
    manifest["levels"]["regions"][name] = value
    (tmp_path / "search.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"search\.json is damaged.*Copy the index folder again, or make it anew"):
        SearchIndex(tmp_path)


@pytest.mark.parametrize("suffix", [".arrow", "state.json", "dataset_info.json"])
@pytest.mark.parametrize("change", ["one byte", "emptied", "missing", "a list"])
def test_rows_that_are_not_those_written_are_refused_before_they_are_read(index, tmp_path, suffix, change):
    shutil.copytree(index.folder, tmp_path / "index")
    (path,) = (path for path in (tmp_path / "index" / "images").iterdir() if path.name.endswith(suffix))
    content = path.read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"one byte": changed, "a list": b"[]"}.get(change, b""))
    if change == "missing":
        path.unlink()
    opened = SearchIndex(tmp_path / "index")
    reason = "is missing" if change == "missing" else "its SHA-256 differs"
    with pytest.raises(ValueError, match=rf"{reason}\. Copy the index folder again"):
        opened.search("images", np.eye(opened.width, dtype=np.float32)[0], 1, is_exact=True)


def test_rows_are_hashed_once_and_those_of_the_other_level_not_at_all(index, monkeypatch):
    hashed = []
    hash_file = search_index.hash_file
    monkeypatch.setattr(search_index, "hash_file", lambda path: hashed.append(path.parent.name) or hash_file(path))
    opened = SearchIndex(index.folder)
    for _ in range(2):
        opened.row("images", 0)
    assert hashed == ["images"] * 3


def test_rows_that_do_not_fit_the_manifest_are_refused(index, tmp_path):
    shutil.copytree(index.folder, tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "search.json").read_text())
    manifest["levels"]["regions"]["num_rows"] += 1
    (tmp_path / "index" / "search.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"holds \d+ rows, not the \d+ with embeddings of 16 numbers of search\.json"):
        SearchIndex(tmp_path / "index").rows("regions")
    manifest["width"] = 15
    (tmp_path / "index" / "search.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"holds 10 rows, not the 10 with embeddings of 15 numbers"):
        SearchIndex(tmp_path / "index").rows("images")


def test_a_file_without_a_graph_is_not_walked_as_one(make_index, tmp_path):
    manifest = make_index(tmp_path / "index", kind="exact")
    manifest["levels"]["images"]["kind"] = "hnsw"
    (tmp_path / "index" / "search.json").write_text(json.dumps(manifest))
    opened = SearchIndex(tmp_path / "index")
    with pytest.raises(ValueError, match=r"images\.faiss is no graph"):
        opened.search("images", np.eye(opened.width, dtype=np.float32)[0], 1)


def test_the_command_prints_hits_for_people_and_for_programs(index, model_folder, pictures, capsys):
    asked = ["query", "--index", str(index.folder), "--model", str(model_folder), "-k", "2"]
    assert main([*asked, "--image", str(pictures[3])]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split()[:3] == ["1", "+1.0000", "phantom:phantom-0-test-000003"]
    box = [str(value) for value in index.row("regions", 5)["box"]]
    image = str(pictures[index.row("regions", 5)["image_row"]])
    assert main([*asked, "--image", image, "--box", *box, "--text", "nodule", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert len(hits) == 2
    assert hits[0]["level"] == "regions"
    assert main([*asked, "--text", "x", "--where", f"finding={hits[0]['finding']}"]) == 0


def test_a_model_with_a_window_of_ct_indexes_8_bit_pictures_and_is_asked_by_them(
    index, make_index, model, processor, pictures, tmp_path, capsys
):
    windowed = processor.image_processor.with_overrides(window="lung")
    model.save_pretrained(tmp_path / "model")
    RegionMedClipProcessor(windowed, processor.tokenizer).save_pretrained(tmp_path / "model")
    make_index(tmp_path / "index", model=tmp_path / "model")
    rows = SearchIndex(tmp_path / "index").column("images", "embedding")
    np.testing.assert_allclose(rows, index.column("images", "embedding"), atol=1e-6)  # as without a window
    asked = ["query", "--index", str(tmp_path / "index"), "--model", str(tmp_path / "model"), "-k", "1"]
    asked += ["--image", str(pictures[3])]
    with pytest.raises(SystemExit):
        main(asked)
    assert "is an 8-bit picture" in (told := capsys.readouterr().err)
    assert "say --window none." in told
    assert main([*asked, "--window", "none"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["1", "+1.0000", "phantom:phantom-0-test-000003"]


def test_the_command_ends_with_2_and_the_reason(index, model_folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["query", "--index", str(index.folder / "none"), "--model", str(model_folder), "--text", "x"])
    assert ended.value.code == 2
    assert "holds no finished index" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["query", "--index", "x", "--model", "x", "--text", "x", "--where", "finding"])
    assert "is not COLUMN=VALUE" in capsys.readouterr().err
