"""Splits by hash: they depend on the patient alone, over all sources, and have the shares they should."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.splits import patient_key, split_by_hash


def test_the_shares_are_80_10_10():
    counts = Counter(split_by_hash("demo", f"patient {k}") for k in range(5000))
    assert abs(counts["train"] / 5000 - 0.8) < 0.02
    assert abs(counts["validation"] / 5000 - 0.1) < 0.015
    assert abs(counts["test"] / 5000 - 0.1) < 0.015


def test_a_split_is_written_in_stone():
    # from a first run: a change here would move patients of corpora that people have already trained on
    assert [split_by_hash("demo", str(k)) for k in range(8)] == ["train"] * 5 + ["validation", "test", "train"]


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_a_patient_of_a_population_is_one_patient_in_every_source(source, other, patient):
    named = f"mimic-cxr:{patient}"
    assert patient_key(source, named) == patient_key(other, named)
    assert split_by_hash(source, named) == split_by_hash(other, named)


def test_the_same_number_in_two_sources_is_two_patients():
    assert patient_key("a", "7") != patient_key("b", "7")
    splits = {split_by_hash(f"source {k}", "7") for k in range(60)}
    assert splits == {"train", "validation", "test"}
