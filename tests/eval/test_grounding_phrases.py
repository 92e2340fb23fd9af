"""Phrases to be found: whose boxes they have, and which are absent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from regionmed_clip.eval.tasks.grounding_phrases import list_phrases

UNIT = np.eye(4, dtype=np.float32)


def split_of(embed_by_hand, images, captions, **changes):
    """A split from each image's (facts, box) pairs."""
    regions = [(i, facts["description"], UNIT[0], box) for i, found in enumerate(images) for facts, box in found]
    embedded = embed_by_hand(np.tile(UNIT[:1], (len(images), 1)), captions, regions=regions)
    stated = [{**facts, "box": box} for found in images for facts, box in found]
    findings = np.array([facts["finding"] for facts in stated])
    is_negated = np.array([bool(facts.get("is_negated")) for facts in stated])
    return replace(embedded, region_facts=stated, region_findings=findings, region_is_negated=is_negated, **changes)


def says(finding: str, description: str | None = None, **stated) -> dict:
    return {"finding": finding, "description": description or finding, **stated}


GLIOMA, LEFT_GLIOMA = says("glioma"), says("glioma", "left glioma", laterality="left")
MENINGIOMA, NO_MENINGIOMA = says("meningioma"), says("meningioma", "no meningioma", is_negated=True)
FIRST, SECOND, THIRD = (0, 0, 4, 4), (5, 5, 9, 9), (20, 20, 30, 30)


def of_image(phrases, image):
    """text -> its boxes, of one image."""
    part = phrases.of_image(image)
    return {t: b.tolist() for t, b in zip(phrases.texts[part], phrases.boxes[part], strict=True)}


def test_a_phrase_has_the_boxes_of_all_regions_it_is_true_of(embed_by_hand):
    images = [[(GLIOMA, FIRST), (LEFT_GLIOMA, SECOND), (GLIOMA, THIRD)]]
    phrases = list_phrases(split_of(embed_by_hand, images, ["a"]))
    assert of_image(phrases, 0) == {
        "glioma": [[0, 0, 4, 4], [5, 5, 9, 9], [20, 20, 30, 30]],  # the one on the left is a glioma too
        "left glioma": [[5, 5, 9, 9]],
    }
    assert phrases.regions.tolist() == [0, 1]
    assert phrases.num_boxes.tolist() == [3, 1]


def test_a_text_of_the_source_has_the_boxes_of_the_same_words_alone(embed_by_hand):
    own_words = says("glioma", "a round thing", text_origin="source")
    images = [[(own_words, FIRST), (GLIOMA, SECOND), (own_words, THIRD)]]
    found = of_image(list_phrases(split_of(embed_by_hand, images, ["a"])), 0)
    assert found["a round thing"] == [[0, 0, 4, 4], [20, 20, 30, 30]]


def test_an_absent_phrase_names_a_finding_of_other_images_of_the_modality(embed_by_hand):
    images = [[(GLIOMA, FIRST)], [(MENINGIOMA, FIRST)], [(says("fracture"), FIRST)]]
    embedded = split_of(embed_by_hand, images, ["a", "b", "c"], image_modalities=np.array(["CT", "CT", "MRI"]))
    phrases = list_phrases(embedded)
    assert of_image(phrases, 0) == {"glioma": [[0, 0, 4, 4]], "meningioma": []}
    assert of_image(phrases, 1) == {"meningioma": [[0, 0, 4, 4]], "glioma": []}
    assert of_image(phrases, 2) == {"fracture": [[0, 0, 4, 4]]}  # the only finding of its modality
    assert phrases.regions.tolist() == [0, -1, 1, -1, 2]


def test_a_finding_that_may_be_the_shown_one_is_not_absent(embed_by_hand):
    images = [[(says("renal cyst"), FIRST)], [(says("cyst"), FIRST)]]  # a cyst may be a renal cyst
    phrases = list_phrases(split_of(embed_by_hand, images, ["a", "b"]))
    assert phrases.texts == ["renal cyst", "cyst"]


def test_denied_findings_are_no_phrase_but_may_be_absent_ones(embed_by_hand):
    images = [[(NO_MENINGIOMA, FIRST)], [(MENINGIOMA, FIRST), (GLIOMA, SECOND)]]
    phrases = list_phrases(split_of(embed_by_hand, images, ["a", "b"]))
    assert list(of_image(phrases, 0).values()) == [[]]  # one phrase, of no box
    assert set(of_image(phrases, 1)) == {"meningioma", "glioma"}


def test_an_image_without_regions_lacks_a_finding_only_where_it_is_called_normal(embed_by_hand):
    images = [[(GLIOMA, FIRST)], [], []]
    captions = ["a", "Normal CT without focal abnormality.", "CT of the chest."]
    phrases = list_phrases(split_of(embed_by_hand, images, captions))
    assert phrases.images.tolist() == [0, 1]
    assert of_image(phrases, 1) == {"glioma": []}


def test_the_choice_among_absent_findings_follows_from_name_and_seed(embed_by_hand):
    names = ["glioma", "meningioma", "pituitary tumor", "drusen", "melanoma"]
    images = [[(says(name), FIRST)] for name in names * 8]
    embedded = split_of(embed_by_hand, images, [f"c{i}" for i in range(40)])
    first, again, other = list_phrases(embedded), list_phrases(embedded), list_phrases(embedded, seed=1)
    assert first.texts == again.texts != other.texts
    absent = [text for text, row in zip(first.texts, first.regions, strict=True) if row < 0]
    assert len(absent) == 40
    assert set(absent) == set(names)
