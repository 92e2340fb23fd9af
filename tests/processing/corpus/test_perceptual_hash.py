"""Perceptual hashes: copies are near, strangers are not, and the search for pairs misses none."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from regionmed_clip.processing.corpus.perceptual_hash import (
    NEAR_COARSE_BITS,
    NEAR_FINE_BITS,
    count_bits,
    hash_of_bytes,
    hash_of_hex,
    hex_of_hash,
    near_pairs,
    perceptual_hash,
)
from regionmed_clip.processing.corpus.sources.phantom import draw_phantom


def encoded(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bits_apart(a, b):
    """(coarse, fine) bits in which two hashes differ."""
    bits = count_bits(a ^ b)
    return int(bits[0]), int(bits[1:].sum())


COPIES = {
    "re-encoded": lambda image: encoded(image, "JPEG", quality=50),
    "half as large": lambda image: encoded(image.resize((image.width // 2, image.height // 2)), "JPEG", quality=85),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.8), "PNG"),
    "in colour": lambda image: encoded(image.convert("RGB"), "PNG"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_an_image_are_near_it(copy):
    for index in range(12):
        original = draw_phantom(0, index).image
        made = COPIES[copy](Image.open(BytesIO(original)).convert("L"))
        coarse, fine = bits_apart(hash_of_bytes(original), hash_of_bytes(made))
        assert coarse <= NEAR_COARSE_BITS, (index, coarse)
        assert fine <= NEAR_FINE_BITS, (index, fine)


def test_different_phantoms_of_one_kind_are_not_near():
    hashes = np.stack([hash_of_bytes(draw_phantom(0, index).image) for index in range(150)])
    assert list(near_pairs(hashes)) == []
    assert (
        len(list(near_pairs(hashes, max_coarse_bits=8, max_fine_bits=256))) > 50
    )  # the coarse hash alone is not enough


def test_a_16_bit_image_hashes_like_its_8_bit_copy():
    levels = np.asarray(Image.open(BytesIO(draw_phantom(0, 1).image)).convert("L"))
    deep = Image.fromarray(levels.astype(np.uint16) * 16 + 30000)
    assert bits_apart(perceptual_hash(deep), perceptual_hash(Image.fromarray(levels))) <= (1, 4)


def test_flat_images_are_near_to_nothing():
    flat = perceptual_hash(Image.new("L", (50, 40), 128))
    assert not flat.any()
    assert list(near_pairs(np.stack([flat, flat]))) == []
    assert list(near_pairs(np.stack([flat, flat]), np.stack([flat]))) == []


def test_a_hash_survives_its_hex_digits():
    words = hash_of_bytes(draw_phantom(0, 0).image)
    assert np.array_equal(hash_of_hex(hex_of_hash(words)), words)


@pytest.mark.parametrize("text", ["", "zz" * 40, "ab" * 39])
def test_other_texts_are_no_hash(text):
    with pytest.raises(ValueError, match="80 hex digits"):
        hash_of_hex(text)


@given(st.data())
def test_the_search_finds_exactly_the_pairs_that_counting_finds(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    coarse_bits, fine_bits = data.draw(st.integers(0, 15)), data.draw(st.integers(0, 256))
    generator = np.random.default_rng(seed)
    centres = generator.integers(1, 2**63, (4, 5), dtype=np.uint64)
    hashes = centres[generator.integers(0, 4, 30)]
    for _ in range(6):  # flip some bits
        flips = np.uint64(1) << generator.integers(0, 64, hashes.shape, dtype=np.uint64)
        hashes = hashes ^ np.where(generator.random(hashes.shape) < 0.5, flips, np.uint64(0))
    bits = count_bits(hashes[:, None] ^ hashes[None])  # (30, 30, 5)
    near = (bits[..., 0] <= coarse_bits) & (bits[..., 1:].sum(-1) <= fine_bits)
    near &= (hashes[:, None, 0] != 0) & (hashes[None, :, 0] != 0)
    limits = {"max_coarse_bits": coarse_bits, "max_fine_bits": fine_bits}
    found = list(near_pairs(hashes, **limits))
    assert len(found) == len(set(found))
    assert {(i, j) for i, j, _ in found} == {(i, j) for i, j in zip(*np.nonzero(near)) if i < j}
    assert all(fine == bits[i, j, 1:].sum() for i, j, fine in found)
    between = list(near_pairs(hashes[:12], hashes[12:], **limits))
    assert len(between) == len(set(between))
    assert {(i, j + 12) for i, j, _ in between} == {(i, j) for i, j in zip(*np.nonzero(near)) if i < 12 <= j}


@pytest.mark.parametrize("limits", [{"max_coarse_bits": 16}, {"max_coarse_bits": -1}, {"max_fine_bits": 257}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match="0 to 15"):
        list(near_pairs(np.zeros((2, 5), np.uint64), **limits))
