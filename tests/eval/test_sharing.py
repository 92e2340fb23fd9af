"""Work shared by processes: each batch is one process's; together they make what one alone would have made."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from regionmed_clip.eval.tasks import embedding, sharing
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.proposals import propose_examples
from regionmed_clip.eval.tasks.sharing import ALONE, Share, join_launch


class Launch:
    """Two threads that meet where the processes of a launch would exchange what they have."""

    def __init__(self, monkeypatch):
        self._barrier = threading.Barrier(2, timeout=20)
        self._given: dict[int, list] = {}
        self._own = threading.local()
        monkeypatch.setattr(sharing, "gather_object", self._gather)
        monkeypatch.setattr(sharing, "broadcast_object_list", self._broadcast)

    def run(self, work) -> list:
        """What `work(share)` gives back in either process."""
        found: list = [None, None]

        def one(index: int) -> None:
            self._own.index = index
            found[index] = work(Share(index, 2))

        threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def _exchange(self, given: list) -> list[list]:
        self._given[self._own.index] = given
        self._barrier.wait()
        everything = [self._given[0], self._given[1]]
        self._barrier.wait()
        return everything

    def _gather(self, given: list) -> list:
        first, second = self._exchange(given)
        return first + second

    def _broadcast(self, given: list) -> None:
        given[:] = self._exchange(list(given))[0]


@pytest.fixture
def launch(monkeypatch):
    """A launch of two."""
    return Launch(monkeypatch)


def test_every_batch_is_the_share_of_one_process_and_joins_in_order(launch):
    assert [list(Share(index, 2).own("abcde")) for index in range(2)] == [
        [(0, "a"), (2, "c"), (4, "e")],
        [(1, "b"), (3, "d")],
    ]
    found = launch.run(lambda share: share.join([(number, batch * 2) for number, batch in share.own("abcde")]))
    assert found == [["aa", "bb", "cc", "dd", "ee"]] * 2
    assert Share().join([(1, "b"), (0, "a")]) == ["a", "b"]


def test_what_the_main_process_makes_all_get_and_only_it_makes(launch):
    made = []
    found = launch.run(lambda share: share.from_main(lambda: made.append(share.index) or "made"))
    assert (found, made) == (["made", "made"], [0])
    assert Share().from_main(lambda: 7) == 7
    assert [Share(index, 2).is_main for index in range(2)] == [True, False]


def test_processes_embed_half_of_the_batches_each_and_both_get_the_whole_split(
    model, processor, draw_example, launch, monkeypatch
):
    examples = [draw_example(i, num_regions=i % 3) for i in range(7)]
    alone = embed_examples(model, processor, examples, batch_size=2, progress=False)
    seen: dict[str, list[str]] = {}
    real = embedding.embed_batch

    def note(model, processor, batch, **options):
        seen.setdefault(threading.current_thread().name, []).extend(example["image_id"] for example in batch)
        return real(model, processor, batch, **options)

    monkeypatch.setattr(embedding, "embed_batch", note)
    for split in launch.run(
        lambda share: embed_examples(model, processor, examples, batch_size=2, progress=False, share=share)
    ):
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(getattr(split, name), value, err_msg=name)
    assert sorted(seen.values()) == [
        ["drawn-0", "drawn-1", "drawn-4", "drawn-5"],
        ["drawn-2", "drawn-3", "drawn-6"],
    ]


def test_processes_share_the_proposals_too(model, processor, draw_example, launch):
    examples = [draw_example(i, num_regions=i % 3) for i in range(5)]
    alone = propose_examples(model, processor, examples, batch_size=2, progress=False)
    for split in launch.run(
        lambda share: propose_examples(model, processor, examples, batch_size=2, progress=False, share=share)
    ):
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(getattr(split, name), value, err_msg=name)


def test_without_a_launch_one_process_does_all(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    share, device = join_launch("cpu")
    assert (share, device.type) == (ALONE, "cpu")
    assert join_launch("auto")[0] == ALONE


def test_processes_that_cannot_work_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher leaves it that Accelerate does not see
    with pytest.raises(ValueError, match="2 processes were started and 1 can work together"):
        join_launch("cpu")
