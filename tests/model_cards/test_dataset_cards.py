"""Dataset cards for publishing: of a built corpus its own, of jsonl folders one with every source and its licence."""

from __future__ import annotations

import pytest
from built_corpora import build, noise, write_source
from datasets import load_dataset

from regionmed_clip.model_cards.card_metadata import split_card
from regionmed_clip.model_cards.dataset_card import check_dataset_card, render_dataset_card
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.dataset_card import render_card as render_corpus_card
from regionmed_clip.processing.corpus.medregion import MedRegion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources: chest with 3 + 1 images, two regions each but for the first, and smear with a closed licence."""
    root = tmp_path_factory.mktemp("sources")
    split = ["train", "train", "train", "test"]
    write_source(root / "chest", [noise(i) for i in range(4)], split=split)
    questions = [[{"q": "Is it?", "a": "yes"}], None]
    write_source(root / "smear", [noise(9), noise(10)], license_name="ask the owners", qa=questions, split=split[:2])
    (root / "chest" / "SOURCE.md").write_text("# chest\n- Licence: CC BY 4.0\n- Citation: A. Author, 2020.\n")
    return root


def test_every_source_stands_there_with_licence_numbers_and_citation(folder):
    card = render_dataset_card(folder)
    check_dataset_card(card)
    assert "6 medical images with 8 marked regions and 1 questions with answers, from 2 sources" in card
    assert "| chest | 4 | CC BY 4.0 | yes |" in card
    assert "| smear | 2 | ask the owners | **not as far as we know** |" in card
    assert "**smear: keep this repository private**" in card
    assert "- Citation: A. Author, 2020." in card
    assert "| chest | train | 3 | 4 | 0 | 3 |" in card
    assert "| chest | test | 1 | 2 | 0 | 1 |" in card
    assert "| nodule | 4 |" in card
    for statement in ("Not for clinical use", "## Personal data", "## Limits", "0 of 6 images have a caption"):
        assert statement in card
    assert str(folder.parent) not in card


def test_notes_of_a_source_hide_nothing_of_what_stands_behind_them(tmp_path):
    write_source(tmp_path / "chest", [noise(0), noise(1)], split=["train", "test"])
    notes = "# chest\n- Licence: CC BY 4.0\n- Notes: <!-- old <script>\n\n<https://a.org> says:\n```\nopen\n"
    (tmp_path / "chest" / "SOURCE.md").write_text(notes)
    card = render_dataset_card(tmp_path)
    behind = card.partition("## Sources and licences")[2].partition("## Fields")[0]
    assert "&lt;!-- old &lt;script>" in behind
    assert "<https://a.org>" in behind
    assert behind.count("```") % 2 == 0


def test_the_hub_reads_licence_tasks_size_and_a_configuration_for_each_source(folder):
    metadata, _ = split_card(render_dataset_card(folder, "lab/regions"))
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "mixed-see-sources"
    assert metadata["task_categories"] == [
        "zero-shot-image-classification",
        "object-detection",
        "visual-question-answering",
    ]
    assert metadata["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in metadata["configs"]] == ["chest", "smear"]


@pytest.mark.parametrize("is_one", [False, True])
def test_what_the_card_says_of_loading_is_true(folder, tmp_path, is_one):
    place = folder / "chest" if is_one else folder
    card = render_dataset_card(place)
    (place / "README.md").write_text(card, encoding="utf-8")
    try:
        rows = load_dataset(
            str(place), "default" if is_one else "chest", split="annotations", cache_dir=str(tmp_path / "cache")
        )
    finally:
        (place / "README.md").unlink()
    assert f'"{"default" if is_one else "chest"}", split="annotations"' in card
    assert len(rows) == 4
    assert rows[1]["labels"] == ["nodule", "effusion"]
    builder = MedRegion("jsonl", data_dir=str(place), cache_dir=str(tmp_path / "medregion"))
    row = next(iter(builder.as_streaming_dataset(split="train")))
    assert row["source"] == "chest"


def test_a_licence_that_all_sources_share_is_the_licence(folder):
    metadata, _ = split_card(render_dataset_card(folder / "chest"))
    assert metadata["license"] == "cc-by-4.0"
    assert "license_name" not in metadata


def test_a_built_corpus_has_its_own_card(tmp_path):
    write_source(tmp_path / "chest", [noise(i) for i in range(3)], split=["train", "train", "test"])
    corpus = build(tmp_path / "corpus", tmp_path / "chest")
    card = render_dataset_card(corpus.folder, "lab/corpus")
    check_dataset_card(card)
    assert card == render_corpus_card(BuiltCorpus(corpus.folder), "lab/corpus")
    assert 'load_dataset("lab/corpus"' in card


def test_what_is_neither_is_refused_and_so_is_a_damaged_card(tmp_path, folder):
    with pytest.raises(ValueError, match=r"holds no annotations\.jsonl"):
        render_dataset_card(tmp_path)
    card = render_dataset_card(folder)
    with pytest.raises(ValueError, match="task_categories is 'object-finding'"):
        check_dataset_card(card.replace("- object-detection", "- object-finding"))
    with pytest.raises(ValueError, match="configs hold"):
        check_dataset_card(card.replace("config_name: smear", "name: smear"))
