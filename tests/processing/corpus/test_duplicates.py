"""What a build decides of all images together: who goes, and that linked images share a split."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.duplicates import decide
from regionmed_clip.processing.corpus.scan import INDEX_TYPE, ScanIndex

TRAIN, VALIDATION, TEST = 0, 1, 2


def index_of(images):
    """Index entries of images given as (content, patient, split) or (content, patient, split, phash seed)."""
    index = np.zeros(len(images), dtype=INDEX_TYPE)
    for entry, (content, patient, split, *look) in zip(index, images):
        digest = hashlib.sha256(content.encode()).hexdigest()
        entry["sha256_start"], entry["sha256"] = int(digest[:16], 16), digest.encode()
        entry["patient"], entry["split"] = patient, split
        entry["phash"] = np.random.default_rng(look[0] if look else int(digest[:8], 16)).integers(1, 2**63, 5)
    return index


def decide_on(index, **options):
    """The decisions on entries that lie in two chunk files."""
    with tempfile.TemporaryDirectory() as folder:
        half = len(index) // 2
        paths = [Path(folder) / "0.npy", Path(folder) / "1.npy"]
        for path, part in zip(paths, (index[:half], index[half:])):
            np.save(path, part, allow_pickle=False)
        return decide(ScanIndex(paths, Path(folder) / "fine.words"), **options)


def test_of_equal_images_the_first_stays():
    decisions = decide_on(index_of([("a", 0, TRAIN), ("b", 0, TRAIN), ("a", 0, TRAIN), ("a", 0, TRAIN)]))
    assert decisions.is_kept.tolist() == [True, True, False, False]
    assert [(pair.kind, pair.first, pair.second) for pair in decisions.duplicates] == [("exact", 0, 2), ("exact", 0, 3)]


def test_equal_starts_of_the_sha256_are_no_proof():
    index = index_of([("a", 0, TRAIN), ("b", 0, TRAIN)])
    index["sha256_start"] = 7
    assert decide_on(index).is_kept.all()


def test_a_dropped_copy_still_says_where_its_group_goes():
    decisions = decide_on(index_of([("a", 0, TRAIN), ("a", 0, TEST)]))
    assert decisions.split.tolist() == [TEST, TEST]
    assert decisions.num_moved == 1


def test_near_duplicates_share_the_stricter_split():
    decisions = decide_on(index_of([("a", 0, TRAIN, 5), ("b", 0, VALIDATION, 5), ("c", 0, TRAIN, 6)]))
    assert decisions.split.tolist() == [VALIDATION, VALIDATION, TRAIN]
    assert decisions.is_kept.all()
    assert [(pair.kind, pair.is_dropped) for pair in decisions.duplicates] == [("near", False)]


def test_near_duplicates_are_dropped_on_demand():
    index = index_of([("a", 0, TRAIN, 5), ("b", 0, TRAIN, 5), ("c", 0, TRAIN, 5)])
    decisions = decide_on(index, drop_near=True)
    assert decisions.is_kept.tolist() == [True, False, False]
    assert all(pair.is_dropped for pair in decisions.duplicates)


def test_a_film_of_near_frames_gives_one_line_a_frame_and_one_group():
    frames = [(f"frame {k}", 0, TEST if k == 40 else TRAIN, 5) for k in range(60)]
    decisions = decide_on(index_of(frames))
    assert [(pair.first, pair.second) for pair in decisions.duplicates] == [(0, k) for k in range(1, 60)]
    assert set(decisions.split.tolist()) == {TEST}


def test_links_reach_through_patients_and_copies():
    # 0 and 1 are one patient, 1 and 2 look alike, 2 and 3 are one patient, which is tested
    images = [("a", 1, TRAIN), ("b", 1, TRAIN, 9), ("c", 2, TRAIN, 9), ("d", 2, TEST), ("e", 3, TRAIN)]
    assert decide_on(index_of(images)).split.tolist() == [TEST, TEST, TEST, TEST, TRAIN]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4), st.integers(0, 2), st.integers(0, 8)), max_size=25)
)
def test_no_patient_and_no_pair_straddles_two_splits(images):
    index = index_of(images)
    decisions = decide_on(index)
    for patient in range(1, 5):
        assert len(set(decisions.split[index["patient"] == patient].tolist())) <= 1
    for pair in decisions.duplicates:
        assert decisions.split[pair.first] == decisions.split[pair.second]
    assert (decisions.split >= index["split"]).all()  # never towards training
    contents = [images[k][0] for k in np.flatnonzero(decisions.is_kept)]
    assert sorted(contents) == sorted({image[0] for image in images})
