"""The card names what a reader and the Hub must know, with the numbers of the corpus."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from built_corpora import build, rewrite

from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.dataset_card import render_card
from regionmed_clip.processing.corpus.licences import hub_license, may_redistribute
from regionmed_clip.processing.corpus.medregion import corpus_features
from regionmed_clip.processing.corpus.records import NEGATIVE_CHANGES, TEXT_LEVELS
from regionmed_clip.processing.corpus.sources.registry import SOURCE_NAMES, about_source, parse_source_spec


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_licence_tasks_size_and_splits(built_once):
    metadata = metadata_of(render_card(built_once))
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["size_categories"] == ["n<1K"]
    assert {"object-detection", "image-segmentation", "visual-question-answering"} < set(metadata["task_categories"])
    assert metadata["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation", "test")
            ],
        }
    ]


def test_tasks_without_data_are_not_named(built):
    def strip(rows):
        for row in rows:
            row |= {"regions": [], "qa": []}

    for split in built.splits():
        corpus = rewrite(built.folder, split, strip)
    assert metadata_of(render_card(corpus))["task_categories"] == ["zero-shot-image-classification", "image-to-text"]


def test_the_card_names_every_column_level_and_change(built_once):
    card = render_card(built_once)
    assert all(f"`{name}`" in card for name in corpus_features())
    assert all(name in card for name in (*TEXT_LEVELS, *NEGATIVE_CHANGES))
    region = corpus_features()["regions"].feature
    assert all(f"`{name}`" in card for name in region)


def test_the_card_says_what_it_must(built_once):
    card = render_card(built_once)
    for statement in ("Not for clinical use", "2508.05244", "withdrew", "## Limits", "Quarantine", "Personal data"):
        assert statement in card
    assert "8 images with" in card.replace("\n", " ")
    assert built_once.revision in card
    assert "phantom" not in card
    assert str(built_once.folder.parent) not in card


def test_what_source_md_says_of_attribution_comes_along_into_manifest_and_card(built_once, tmp_path):
    assert built_once.manifest["sources"][0]["notes"] == "- Licence: CC BY 4.0\n- Modality: chest radiograph"
    root = shutil.copytree(built_once.folder.parent / "chest", tmp_path / "chest")
    said = "- Licence: CC BY 4.0\n- Citation: A. Author, A set of films, 2020.\n- Changes: cut to 60 x 48."
    (root / "SOURCE.md").write_text(f"# chest\n\n{said}\n")
    corpus = build(tmp_path / "corpus", root)
    assert corpus.manifest["sources"][0]["notes"] == said
    assert f"### chest\n\n{said}\n" in (corpus.folder / "README.md").read_text()
    (root / "SOURCE.md").unlink()
    corpus = build(tmp_path / "silent", root)
    assert "notes" not in corpus.manifest["sources"][0]
    assert "### chest" not in render_card(corpus)


def test_the_loading_example_names_the_repository_or_the_corpus(built_once):
    assert 'load_dataset("lab/chest", split="train"' in render_card(built_once, "lab/chest")
    assert '"train": "THIS_FOLDER/data/train-*.parquet"' in render_card(built_once)


def test_a_phantom_corpus_says_that_it_is_drawn(tmp_path):
    spec = parse_source_spec("phantom:num_train=4,num_test=2", None)
    corpus = build_corpus([spec], tmp_path / "corpus", num_processes=1, show_progress=False)
    card = render_card(corpus)
    assert card == (corpus.folder / "README.md").read_text()  # which the build wrote
    assert "drawn by a program" in card
    assert metadata_of(card)["license"] == "apache-2.0"


def test_closed_and_mixed_licences_are_said_plainly(built):
    def close(rows):
        rows[0]["license"] = "unknown"

    card = render_card(rewrite(built.folder, "test", close))
    assert metadata_of(card)["license"] == "other"
    assert 'Images under "unknown" may not be passed on' in card


def test_a_mixture_of_open_licences_is_a_list(built):
    corpus = rewrite(built.folder, "test", lambda rows: rows[0].update(license="CC0 1.0"))
    assert metadata_of(render_card(corpus))["license"] == ["cc-by-4.0", "cc0-1.0"]


def test_a_source_that_may_not_be_shared_is_marked(built):
    manifest = json.loads((built.folder / "manifest.json").read_text())
    manifest["sources"][0]["license"] = "PhysioNet Credentialed Health Data License 1.5.0"
    (built.folder / "manifest.json").write_text(json.dumps(manifest))
    assert "**not for redistribution as far as we know**" in render_card(BuiltCorpus(built.folder))


@pytest.mark.parametrize(
    ("name", "hub_id", "is_open"),
    [
        ("CC BY 4.0", "cc-by-4.0", True),
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0", True),
        ("CC BY-SA 1.0", "other", True),
        ("CC0 1.0", "cc0-1.0", True),
        ("MIT", "mit", True),
        ("CC BY-ND 4.0", "other", False),
        ("CC BY-NC-ND 4.0", "other", False),
        ("PhysioNet Credentialed Health Data License 1.5.0", "other", False),
        ("unknown", "other", False),
        ("MIT, but ask first", "other", False),
        ("", "other", False),
    ],
)
def test_a_licence_is_open_only_where_it_is_known_to_be(name, hub_id, is_open):
    assert (hub_license(name), may_redistribute(name)) == (hub_id, is_open)


def test_credentialed_and_unknown_sources_are_closed():
    closed = {name for name in SOURCE_NAMES if not may_redistribute(about_source(name).license)}
    assert {"vindr_cxr", "ms_cxr", "chest_imagenome", "padchest_gr", "medtrinity"} <= closed
    assert not closed & {"phantom", "slake", "vqa_rad", "rocov2", "nih_bbox"}
