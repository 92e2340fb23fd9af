"""Splits for questions: what stays together, what chance decides, and which pairs of parts are refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.question_split import check_disjoint, groups_of_images, holdout_split


def picture(seed: int, brightness: float = 1.0) -> Image.Image:
    """A smooth random picture; another brightness gives a near duplicate, another seed a stranger."""
    small = np.random.default_rng(seed).integers(0, 200, (6, 6)).astype(np.uint8)
    large = np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((large * brightness).astype(np.uint8))


def part(name, *images):
    """A part of (image_id, patient_id, seed of the picture, brightness)."""
    return part_of_examples(
        name,
        [
            {"image_id": image_id, "patient_id": patient, "source": "demo", "image": picture(seed, brightness)}
            | {"sha256": f"{seed:032x}{round(brightness * 1000):032x}"}
            for image_id, patient, seed, brightness in images
        ],
    )


@settings(max_examples=20)
@given(st.lists(st.sampled_from([f"patient {n}" for n in range(30)]), min_size=1), st.integers(0, 5))
def test_rows_of_one_group_share_their_part_which_no_other_row_changes(groups, seed):
    shares = {"train": 1.0}
    assert set(holdout_split(groups, shares, seed)) == {"train"}
    many = [f"patient {n}" for n in range(200)]
    part_of = dict(zip(many, holdout_split(many, seed=seed)))
    again = holdout_split([*groups, *many[::-1]], seed=seed)
    assert again == [part_of[group] for group in [*groups, *many[::-1]]]


def test_parts_have_about_their_shares_and_another_seed_draws_others():
    groups = [str(number) for number in range(2000)]
    drawn = holdout_split(groups, {"train": 0.7, "validation": 0.1, "test": 0.2})
    counts = Counter(drawn)
    assert abs(counts["train"] - 1400) < 82  # 4 standard deviations of 20.5
    assert abs(counts["validation"] - 200) < 54
    assert abs(counts["test"] - 400) < 72
    assert drawn[:3] == holdout_split(groups[:3] + groups)[:3]
    assert holdout_split(groups, seed=1) != drawn


@pytest.mark.parametrize(
    ("groups", "shares", "words"),
    [
        (["a", "b"], {}, "Shares are {}"),
        (["a", "b"], {"train": 0.5, "test": 0.4}, "their sum 1"),
        (["a", "b"], {"train": 1.2, "test": -0.2}, "above 0"),
        (["a", "a", "a"], {"train": 0.5, "test": 0.5}, "1 groups leave part"),
    ],
)
def test_shares_that_cannot_be_are_refused(groups, shares, words):
    with pytest.raises(ValueError, match=words):
        holdout_split(groups, shares)


def test_images_of_a_patient_and_copies_of_an_image_are_one_group():
    images = part(
        "train",
        ("a", "p1", 2, 1.0),
        ("b", "p1", 1, 1.0),
        ("c", None, 1, 0.9),  # near to b, so with its patient
        ("d", None, 3, 1.0),
        ("e", None, 3, 1.0),  # d again
        ("f", None, 4, 1.0),
        ("g", "p2", 5, 1.0),
    )
    a, b, c, d, e, f, g = groups_of_images(images)
    assert a == b == c
    assert (d, e, f) == ("d", "d", "f")
    assert len({a, d, f, g}) == 4
    assert a.startswith("patient ")  # a new image of the patient keeps the name


def test_parts_that_share_nothing_pass():
    assert check_disjoint(part("train", ("a", "p1", 1, 1.0)), part("test", ("b", "p2", 2, 1.0))) is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (("b", None, 1, 1.0), r"share equal bytes .* with 'test' \(a ~ b\)"),
        (("b", None, 1, 0.9), r"share near by perceptual hash with 'test' \(a ~ b\)"),
        (("b", "p1", 2, 1.0), r"share a patient with 'test' \(a ~ b\)"),
    ],
)
def test_parts_that_share_an_image_or_a_patient_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        check_disjoint(part("train", ("a", "p1", 1, 1.0), ("z", None, 9, 1.0)), part("test", image))
