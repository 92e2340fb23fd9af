"""What a card says of training images comes from training_data.json, and what that does not say is not made up."""

from __future__ import annotations

import pytest

from regionmed_clip.model_cards.training_sources import read_training_images


def told(sources, data=(), start=None):
    images = {"num_images": sum(sources.values()), "num_patients": 0, "sources": sources}
    return {"data": list(data), "start": start, "images": images}


def test_sources_come_largest_first_with_the_licences_of_run_and_start():
    part = {"kind": "corpus", "sources": [{"name": "a", "license": "MIT"}, {"name": "a", "license": "CC0 1.0"}]}
    start = {"name": "final", "unknown": "", "data": [{"kind": "jsonl", "sources": [{"name": "b", "license": "X"}]}]}
    images = read_training_images(told({"a": 2, "b": 5, "phantom": 2}, [part], start))
    assert [(s.name, s.num_images, s.license_text, s.is_open) for s in images.sources] == [
        ("b", 5, "X", False),
        ("a", 2, "CC0 1.0, MIT", True),
        ("phantom", 2, "not recorded", False),
    ]
    assert [source.name for source in images.closed] == ["b", "phantom"]
    assert images.unknown == ""


def test_phantoms_are_our_own_even_where_an_older_file_says_nothing():
    images = read_training_images(told({"phantom": 3}, [{"kind": "phantom", "num_images": 3}]))
    assert images.sources[0].licenses == ("Apache-2.0",)
    assert images.closed == ()


@pytest.mark.parametrize("images", [None, {}, {"num_images": "many"}])
def test_a_file_without_its_images_is_refused(images):
    with pytest.raises(ValueError, match="it must have num_images"):
        read_training_images({"images": images})
