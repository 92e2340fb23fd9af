"""Neighbours by cosine: exact ones against a full sort, those of the graph against the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("faiss", reason="pip install -e '.[search]'")

from regionmed_clip.eval.search import neighbours
from regionmed_clip.eval.search.neighbours import (
    EXACT,
    GRAPH,
    TARGET_RECALL,
    build,
    read_index,
    recall_of,
    search_exactly,
    search_graph,
    tune,
    write_index,
)

ON_A_CIRCLE = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)


def unit_vectors(number: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_exact_neighbours_are_the_largest_cosines_in_order():
    scores, rows = search_exactly([ON_A_CIRCLE[:3], ON_A_CIRCLE[3:]], np.array([[1, 0]], dtype=np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(scores, [[1.0, 0.6, 0.0]], atol=1e-6)  # float32


def test_more_than_there_are_gives_all_and_narrowing_leaves_the_others_out():
    query = np.array([[1, 0]], dtype=np.float32)
    assert search_exactly([ON_A_CIRCLE], query, 9)[1].tolist() == [[0, 1, 2, 3]]
    is_allowed = np.array([False, True, False, True])
    assert search_exactly([ON_A_CIRCLE], query, 9, is_allowed)[1].tolist() == [[1, 3]]
    assert search_exactly([ON_A_CIRCLE], query, 9, np.zeros(4, dtype=bool))[1].shape == (1, 0)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**16))
def test_cutting_rows_into_blocks_changes_nothing(cut, k, seed):
    vectors, query = unit_vectors(60, 5, seed), unit_vectors(2, 5, seed + 1)
    scores, rows = search_exactly([vectors[:cut], vectors[cut:]], query, k)
    wanted = np.argsort(-(query @ vectors.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(scores, np.take_along_axis(query @ vectors.T, wanted, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.einsum("qkd,qd->qk", vectors[rows], query), scores, atol=1e-6)


def test_recall_counts_what_is_as_near_as_the_furthest_exact_neighbour():
    exact = np.array([[0.9, 0.8]], dtype=np.float32)
    assert recall_of(exact, np.array([[0.9, 0.8]]), np.array([[3, 7]])) == 1.0  # 7 may tie with another row
    assert recall_of(exact, np.array([[0.9, 0.7]]), np.array([[3, 5]])) == 0.5
    assert recall_of(exact, np.array([[0.9, -3e38]]), np.array([[3, -1]])) == 0.5


def test_the_graph_is_widened_until_it_finds_what_looking_at_all_finds():
    vectors = unit_vectors(6000, 64)  # without structure: hard for a graph
    index = build([vectors[:3500], vectors[3500:]], 64, GRAPH)
    measured = tune(index, [vectors], {"of_rows": unit_vectors(50, 64, 1), "of_texts": np.zeros((0, 64), np.float32)})
    recalls = [entry["recall@10"]["of_rows"] for entry in measured]
    assert recalls[0] < TARGET_RECALL <= recalls[-1]
    assert index.hnsw.efSearch == measured[-1]["search_width"]
    query = unit_vectors(20, 64, 2)
    exact, found = search_exactly([vectors], query, 10), search_graph(index, query, 10)
    assert recall_of(exact[0], *found) >= 0.98


def test_a_graph_that_never_reaches_the_target_says_so_and_stays_at_its_widest(monkeypatch):
    monkeypatch.setattr(neighbours, "TARGET_RECALL", 1.1)
    monkeypatch.setattr(neighbours, "SEARCH_WIDTHS", (16, 32))
    vectors = unit_vectors(200, 8)
    index = build([vectors], 8, GRAPH)
    assert [entry["search_width"] for entry in tune(index, [vectors], {"of_rows": vectors[:5]})] == [16, 32]


@pytest.mark.parametrize("kind", [EXACT, GRAPH])
def test_an_index_file_is_read_again_only_as_it_was_written(kind, tmp_path):
    path = tmp_path / "rows.faiss"
    sha256 = write_index(build([ON_A_CIRCLE], 2, kind), path)
    index = read_index(path, sha256=sha256, num_rows=4, width=2)
    assert index.search(np.array([[0, 1]], dtype=np.float32), 1)[1].tolist() == [[2]]
    with pytest.raises(ValueError, match="holds 4 rows of 2 numbers; the rows beside it are 5 of 2"):
        read_index(path, sha256=sha256, num_rows=5, width=2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ValueError, match="is not the file that was written"):
        read_index(path, sha256=sha256, num_rows=4, width=2)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_index(path, sha256=sha256, num_rows=4, width=2)


def test_without_faiss_the_message_says_what_to_install(hide_package):
    hide_package("faiss")
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        build([ON_A_CIRCLE], 2, EXACT)
