"""The file of training images: read as it was written, counted right, without names; other files are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built_corpora import noise
from PIL import Image

from regionmed_clip.processing.corpus.fingerprints import TYPE, fingerprint
from regionmed_clip.processing.corpus.perceptual_hash import hex_of_hash, perceptual_hash
from regionmed_clip.processing.corpus.training_images import (
    IMAGES_FILE,
    read_blocks,
    read_fingerprints,
    write_training_images,
)


def drawn_prints(number: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    prints = np.zeros(number, dtype=TYPE)
    prints["sha256"] = [hashlib.sha256(bytes([seed, i])).hexdigest().encode() for i in range(number)]
    prints["phash"] = generator.integers(0, 2**64, (number, 5), dtype=np.uint64)
    prints["patient"] = np.arange(number) // 2  # 0 is "unknown"
    return prints


def test_what_is_written_is_read_and_counted(tmp_path):
    blocks = [(drawn_prints(5, 0), ["a"] * 3 + ["b"] * 2), (drawn_prints(4, 1), ["b"] * 4)]
    facts = write_training_images(tmp_path / IMAGES_FILE, iter(blocks))
    assert facts == {
        "file": IMAGES_FILE,
        "sha256": hashlib.sha256((tmp_path / IMAGES_FILE).read_bytes()).hexdigest(),
        "num_images": 9,
        "num_patients": 2,  # 1 and 2; 0 is none
        "sources": {"a": 3, "b": 6},
    }
    np.testing.assert_array_equal(read_fingerprints(tmp_path / IMAGES_FILE), np.concatenate([b for b, _ in blocks]))
    assert [source for _, sources in read_blocks(tmp_path / IMAGES_FILE) for source in sources] == ["a"] * 3 + ["b"] * 6
    assert [path.name for path in tmp_path.iterdir()] == [IMAGES_FILE]


def test_the_same_images_give_the_same_bytes(tmp_path):
    hashes = [write_training_images(tmp_path / name, [(drawn_prints(5, 0), ["a"] * 5)])["sha256"] for name in "xy"]
    assert hashes[0] == hashes[1]


def test_no_images_make_an_empty_file(tmp_path):
    assert write_training_images(tmp_path / IMAGES_FILE, [])["num_images"] == 0
    assert read_fingerprints(tmp_path / IMAGES_FILE).shape == (0,)


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    write_training_images(tmp_path / IMAGES_FILE, [(drawn_prints(5, 0), ["a"] * 5)])
    before = (tmp_path / IMAGES_FILE).read_bytes()

    def failing():
        yield drawn_prints(2, 1), ["a"] * 2
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_training_images(tmp_path / IMAGES_FILE, failing())
    assert (tmp_path / IMAGES_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [IMAGES_FILE]


def test_another_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"sha256": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is no list of training images"):
        read_fingerprints(tmp_path / "other.parquet")


def test_a_fingerprint_is_the_same_from_columns_bytes_a_file_or_a_picture(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    digest, words = hashlib.sha256(content).hexdigest(), perceptual_hash(Image.fromarray(noise(3)))
    shared = {"image_id": "a", "source": "chest", "patient_id": "p1"}
    given = [
        {"sha256": digest, "phash": hex_of_hash(words)},
        {"image": {"bytes": content, "path": None}},
        {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "sha256": digest},
        {"image": Image.fromarray(noise(3)), "sha256": digest},
    ]
    prints = [fingerprint(shared | fields) for fields in given]
    assert all(one == prints[0] for one in prints)
    assert prints[0]["sha256"].item() == digest.encode()
    assert prints[0]["patient"] != 0
    unknown = fingerprint(shared | {"image": Image.fromarray(noise(3)), "patient_id": None})
    assert (unknown["sha256"].item(), int(unknown["patient"])) == (b"", 0)


def test_an_image_that_does_not_decode_is_refused_by_name():
    with pytest.raises(ValueError, match="broken cannot be decoded"):
        fingerprint({"image_id": "broken", "source": "chest", "image": b"no image"})
