"""Work shared by processes: each batch is one process's; together they make what one alone would have made."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.tasks import embedding, grounding_maps, robustness, sharing
from regionmed_clip.eval.tasks.embedding import embed_examples, embed_texts
from regionmed_clip.eval.tasks.grounding_maps import HEAT_PATHS, ground_split, paths_of
from regionmed_clip.eval.tasks.grounding_phrases import list_phrases
from regionmed_clip.eval.tasks.proposals import propose_examples
from regionmed_clip.eval.tasks.robustness import embed_perturbed
from regionmed_clip.eval.tasks.sharing import ALONE, Share, join_launch
from regionmed_clip.eval.tasks.task_inputs import TaskInputs


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


def make_inputs(model, processor, examples, reading) -> TaskInputs:
    """What a task is given of these examples."""
    return TaskInputs(
        model=model,
        processor=processor,
        region_reading=reading,
        embedded=embed_examples(model, processor, examples, region_reading=reading, progress=False),
        examples=examples,
        embed_split={}.__getitem__,
        splits=("test",),
        tuning_split="validation",
        batch_size=2,
        is_shown=False,
    )


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


def test_processes_share_the_texts(model, processor, launch):
    texts = [f"{finding} in zone {i}" for i in range(4) for finding in ("nodule", "cyst")]
    alone = embed_texts(model, processor, texts, batch_size=3)
    seen: dict[str, int] = {}

    class Counting:
        def encode_texts(self, batch):
            name = threading.current_thread().name
            seen[name] = seen.get(name, 0) + len(batch)
            return processor.encode_texts(batch)

    for embeds in launch.run(lambda share: embed_texts(model, Counting(), texts, batch_size=3, share=share)):
        np.testing.assert_array_equal(embeds, alone)
    assert sorted(seen.values()) == [3, 5]  # batches of 3, 3 and 2


@pytest.mark.parametrize("reading", ["roi", "dense_mean"])
def test_processes_share_the_phrases_to_ground(model, processor, draw_example, launch, monkeypatch, reading):
    examples = [draw_example(i, num_regions=i % 3) for i in range(7)]
    inputs = make_inputs(model, processor, examples, reading)
    phrases, seen = list_phrases(inputs.embedded), []
    real = grounding_maps.PreparedExample.read
    monkeypatch.setattr(
        grounding_maps.PreparedExample,
        "read",
        lambda example, *rest: (seen.append(example["image_id"]), real(example, *rest))[1],
    )

    def ground(share):
        return ground_split(replace(inputs, share=share), inputs.embedded, examples, phrases, paths_of(inputs))

    alone = ground(ALONE)
    num_alone = len(seen)
    assert alone.found[HEAT_PATHS[0]].scores.size
    for grounded in launch.run(ground):
        for name in ("peaks", "contrasts", "is_hit", "area_shares", "ious", "clusters"):
            np.testing.assert_array_equal(getattr(grounded, name), getattr(alone, name), err_msg=name)
        for path, found in alone.found.items():
            for name, values in vars(found).items():
                np.testing.assert_array_equal(getattr(grounded.found[path], name), values, err_msg=name)
    assert len(seen) == 2 * num_alone  # once alone, once by both together


def test_processes_share_the_worse_images(model, processor, draw_example, launch, monkeypatch):
    examples = [draw_example(i, num_regions=i % 3) for i in range(5)]
    inputs = make_inputs(model, processor, examples, "roi")
    seen = []
    real = robustness.perturb_all

    def note(batch, *rest):
        seen.extend(example["image_id"] for example in batch)
        return real(batch, *rest)

    monkeypatch.setattr(robustness, "perturb_all", note)
    inputs = replace(inputs, batch_size=16)
    alone = embed_perturbed(inputs)
    assert seen == [example["image_id"] for example in examples]
    for found in launch.run(lambda share: embed_perturbed(replace(inputs, share=share))):
        for name, changed in alone.items():
            for field, values in vars(changed).items():
                np.testing.assert_array_equal(getattr(found[name], field), values, err_msg=f"{name} {field}")
    assert sorted(seen[5:]) == sorted(seen[:5])  # each image is changed by one of the two


def test_without_a_launch_one_process_does_all(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    share, device = join_launch("cpu")
    assert (share, device.type) == (ALONE, "cpu")
    assert join_launch("auto")[0] == ALONE


def test_processes_that_cannot_work_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher leaves it that Accelerate does not see
    with pytest.raises(ValueError, match="2 processes were started and 1 can work together"):
        join_launch("cpu")
