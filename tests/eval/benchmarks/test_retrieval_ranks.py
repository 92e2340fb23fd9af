"""The benchmark compares forms that give the same ranks, and says what each costs."""

import numpy as np

from regionmed_clip.eval.benchmarks import retrieval_ranks
from regionmed_clip.eval.benchmarks.retrieval_ranks import BLOCKS, FORMS, PEER, embeddings, run


def test_both_forms_give_the_same_ranks_but_for_ties():
    inputs = embeddings(1500, 16)
    ranks, peer_ranks = FORMS[BLOCKS](*inputs), FORMS[PEER](*inputs)
    assert (ranks == peer_ranks).mean() > 0.97
    assert set(ranks - peer_ranks) <= {0, 1}  # a negative within rounding of the positive is a tie, for us alone
    assert 1 < np.median(ranks) < 500  # neither all first nor chance


def test_the_report_compares_the_largest_gallery_with_the_smallest_and_extrapolates(monkeypatch):
    costs = {100: {"cpu_s": 1.0, "peak_mb": 50.0}, 200: {"cpu_s": 4.0, "peak_mb": 51.0}}
    monkeypatch.setattr(retrieval_ranks, "cost", lambda form, size, width: costs[size])
    report = run([100, 200], [100], 1000, 8)
    assert report["costs"].keys() == {"blocks, 100", "blocks, 200", "full matrix, 100"}
    assert report["peak_of_largest_over_smallest"] == 1.02
    assert report["time_of_largest_over_smallest"] == 4.0
    assert report["extrapolated"] == {"gallery": 1000, "cpu_s": 100.0}


def test_a_form_is_measured_in_a_process_of_its_own():
    found = retrieval_ranks.cost(PEER, 10_000, 8)  # large enough to last: the peak is sampled
    assert found["embeddings_mb"] == 0.6
    assert found["peak_mb"] > 300  # 100 million scores in float32 are 400 MB, its masks and copies come on top
