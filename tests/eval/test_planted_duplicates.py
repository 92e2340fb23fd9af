"""A caption that two images share never lowers a recall: either image, and either copy of the text, is right."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.tasks.retrieval import measure_retrieval

NUM_IMAGES = 60  # at least as many texts as a recall needs


def recalls(embedded) -> dict[str, float]:
    """recall@1 of the whole split, by direction."""
    measured = {figure.metric: figure.value for figure in measure_retrieval(embedded, seed=0)}
    return {way: measured[f"{way}_recall@1"] for way in ("image_to_text", "text_to_image")}


@pytest.fixture
def images() -> np.ndarray:
    """(60, 60): every image has its own caption's embedding, but image 0 is nearer to the caption of image 5."""
    embeds = np.eye(NUM_IMAGES)
    embeds[0, 5], embeds[0, 0] = 0.9, 0.1
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


CAPTIONS = [f"Chest radiograph, case {i}." for i in range(NUM_IMAGES)]


def test_without_duplicates_one_image_of_sixty_misses_its_text(embed_by_hand, images):
    assert recalls(embed_by_hand(images, CAPTIONS)) == {"image_to_text": 59 / 60, "text_to_image": 1.0}


def test_a_planted_duplicate_caption_does_not_lower_recall_at_1(embed_by_hand, images):
    planted = embed_by_hand(np.vstack([images, images[7:8]]), [*CAPTIONS, CAPTIONS[7]])
    assert planted.num_images == 61
    assert len(planted.captions) == 60
    assert recalls(planted) == {"image_to_text": pytest.approx(60 / 61), "text_to_image": 1.0}


def test_a_text_is_found_if_any_of_its_images_comes_first(embed_by_hand, images):
    poor = np.zeros((1, NUM_IMAGES))  # a second image of caption 7 that looks like case 20
    poor[0, [20, 7]] = np.sqrt([0.9, 0.1])
    planted = embed_by_hand(np.vstack([images, poor]), [*CAPTIONS, CAPTIONS[7]])
    assert recalls(planted) == {"image_to_text": pytest.approx(59 / 61), "text_to_image": 1.0}
