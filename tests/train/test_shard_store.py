"""Training straight from shards: the samples of the prepared frames, in DESIGN's order, over processes and workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpora import rows_of, small_corpus, write_corpus, write_jsonl_source

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.data_spec import parse_data_spec
from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource
from regionmed_clip.processing.corpus.sources.phantom import PhantomSource
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train import shard_store
from regionmed_clip.train.augmented_samples import PositionedSamples, SampleSettings
from regionmed_clip.train.collator import Collator, load_batches
from regionmed_clip.train.data_stores import MixtureStore, open_data, prepare_data
from regionmed_clip.train.frame_store import FrameStore, prepare_split, write_part
from regionmed_clip.train.sample_order import rank_positions
from regionmed_clip.train.shard_store import ShardStore
from regionmed_clip.train.tokenizer import train_tokenizer

IMAGES = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=12)
BATCH = 6  # of all processes
SEED = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """42 training images in 6 shards of at most 8 rows, row groups of 3."""
    return small_corpus(tmp_path_factory.mktemp("shards") / "demo", num_images=60)


@pytest.fixture(scope="module")
def store(corpus):
    return ShardStore(corpus.folder, "train", IMAGES)


@pytest.fixture(scope="module")
def collator(store):
    return Collator(RegionMedClipProcessor(IMAGES, train_tokenizer(store.texts(), 300, 16)))


def batches(store, collator, steps, *, rank=0, num_processes=1, num_workers=0):
    """The batches that a rank of the trainer makes in the given steps."""
    samples = PositionedSamples(store, store.order(SEED), SampleSettings(max_regions=3))
    positions = [rank_positions(step * BATCH, BATCH, rank, num_processes) for step in steps]
    return list(load_batches(samples, positions, collator, num_workers))


def ids(found):
    return [name for batch in found for name in batch["sample_id"]]


def assert_same(one, other):
    assert one.sample_id == other.sample_id
    np.testing.assert_array_equal(one.frame, other.frame)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    for name in ("caption", "caption_key", "region_texts", "region_keys", "region_findings", "source", "details"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("caption_facts", "region_facts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_samples_and_texts_are_those_of_the_prepared_frames(tmp_path):
    source = PhantomSource(num_train=10, num_test=0)
    rows = rows_of(source.records("train"), source.looked_for)
    corpus = write_corpus(tmp_path / "phantoms", {"train": rows}, rows_of_shard=7)
    prepare_split(tmp_path / "frames", "phantom:num_train=10,num_test=0", "train", IMAGES, num_workers=1)
    frames, shards = FrameStore(tmp_path / "frames", 24), ShardStore(corpus.folder, "train", IMAGES)
    assert len(shards) == len(frames) == 10
    for one, other in zip(shards.samples(range(10)), frames.samples(range(10)), strict=True):
        assert_same(one, other)
    assert list(shards.texts()) == list(frames.texts())
    keys = [(row["caption_key"], [region["key"] for region in row["regions"]]) for row in rows]
    assert list(shards.text_keys()) == list(frames.text_keys()) == keys
    for one, other in zip(shards.examples(), frames.examples(), strict=True):
        assert one["image"].tobytes() == other["image"].tobytes()
        assert {**one, "image": None} == {**other, "image": None}


def test_a_caption_that_says_only_what_kind_of_image_it_is_has_no_key(tmp_path):
    boxless = {"boxes_xyxy": [], "labels": []}
    fields_of_source = {"bare": boxless, "captioned": boxless | {"caption": "A nerve."}, "boxed": {}}
    for name, fields in fields_of_source.items():
        source = JsonlSource(write_jsonl_source(tmp_path / name, 1, **fields))
        (split,) = source.splits()
        corpus = write_corpus(tmp_path / f"{name}_corpus", {split: rows_of(source.records(split))})
        write_part(tmp_path / name / "part-0.arrow", f"jsonl:{source.root}", split, 0, 1, IMAGES.to_dict())
        frames, shards = FrameStore(tmp_path / name, 24), ShardStore(corpus.folder, split, IMAGES)
        for store in (frames, shards, MixtureStore([frames], [1.0])):
            (sample,), (keys,), texts = store.samples([0]), store.text_keys(), list(store.texts())
            assert (sample.caption_key == NO_TEXT_KEY) == (keys[0] == NO_TEXT_KEY) == (name == "bare")
            assert texts[0] == sample.caption != ""  # a tokenizer may still learn its words


def test_samples_come_in_the_order_asked_for(store, corpus):
    names = [row["image_id"] for row in corpus.rows("train", columns=["image_id"])]
    wanted = [41, 0, 7, 8, 7, 20]
    assert [sample.sample_id for sample in store.samples(wanted)] == [names[index] for index in wanted]
    assert store.samples([]) == []


def test_the_window_of_a_16_bit_image_is_applied(tmp_path):
    import io

    values = np.full((24, 24), 1500, dtype=np.uint16)
    values[:12] = 60000
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    (row,) = rows_of(PhantomSource(num_train=1, num_test=0).records("train"))
    row |= {
        "image": {"bytes": content.getvalue(), "path": "a.png"},
        "width": 24,
        "height": 24,
        "regions": [],
        "negatives": [],
    }
    corpus = write_corpus(tmp_path / "ct", {"train": [row | {"window": [1000.0, 2000.0]}]})
    (sample,) = ShardStore(corpus.folder, "train", IMAGES).samples([0])
    assert sample.frame[:, :12].min() == 255
    assert set(sample.frame[:, 12:].ravel().tolist()) == {128}


def test_neighbours_cost_one_read_of_their_row_group_and_memory_is_bounded(corpus, monkeypatch):
    reads = []
    tables = BuiltCorpus.tables
    monkeypatch.setattr(
        BuiltCorpus,
        "tables",
        lambda self, split, start, *rest: (reads.append(start), tables(self, split, start, *rest))[1],
    )
    store = ShardStore(corpus.folder, "train", IMAGES)
    for index in range(9):
        store.samples([index])
    assert reads == [0, 3, 6, 8]  # shards of 8 rows: groups of 3, 3 and 2
    store.samples([0, 4, 8])
    assert reads == [0, 3, 6, 8]
    monkeypatch.setattr(shard_store, "CACHE_BYTES", 1)
    store.samples([20, 30])
    assert len(store._tables) == 1


def test_one_process_sees_every_sample_once_in_the_order_of_the_files_and_then_in_another(store, corpus, collator):
    names = [row["image_id"] for row in corpus.rows("train", columns=["image_id"])]
    assert ids(batches(store, collator, range(7))) == names
    second = ids(batches(store, collator, range(7, 14)))
    assert sorted(second) == sorted(names)
    assert second != names


def test_two_processes_with_two_workers_each_see_what_one_process_sees_in_the_same_order(store, collator):
    alone = batches(store, collator, range(14))  # two epochs
    shared = [batches(store, collator, range(14), rank=rank, num_processes=2, num_workers=2) for rank in range(2)]
    for step, whole in enumerate(alone):
        parts = [shared[rank][step] for rank in range(2)]
        assert parts[0]["sample_id"] + parts[1]["sample_id"] == whole["sample_id"]
        assert torch.equal(torch.cat([part["pixel_values"] for part in parts]), whole["pixel_values"])
        assert torch.equal(torch.cat([part["region_boxes"] for part in parts]), whole["region_boxes"])
    for first_step in (0, 7):
        seen = [ids(found[first_step : first_step + 7]) for found in shared]
        assert len({*seen[0], *seen[1]}) == len(seen[0]) + len(seen[1]) == 42


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_resume_within_an_epoch_goes_on_with_the_very_next_sample(corpus, store, collator, step):
    undisturbed = ids(batches(store, collator, range(12), num_workers=2))
    fresh = ShardStore(corpus.folder, "train", IMAGES)
    assert ids(batches(fresh, collator, range(step, 12), num_workers=2)) == undisturbed[step * BATCH :]


def test_a_store_handed_to_another_process_reads_the_same(store):
    import pickle

    sent = pickle.loads(pickle.dumps(store))  # noqa: S301  (as processes that are spawned get it)
    assert_same(sent.samples([3])[0], store.samples([3])[0])


def test_a_shard_that_does_not_agree_with_the_manifest_is_refused(corpus, tmp_path):
    rows = list(corpus.rows("train"))
    damaged = write_corpus(tmp_path / "damaged", {"train": rows[:10]})
    other = write_corpus(tmp_path / "other", {"train": rows[:9]})
    damaged.shard_paths("train")[1].write_bytes(other.shard_paths("train")[1].read_bytes())
    with pytest.raises(ValueError, match="the shards of 'train' hold 9 rows and the manifest says 10"):
        ShardStore(damaged.folder, "train", IMAGES)


def test_an_image_that_cannot_be_decoded_is_named(corpus, tmp_path):
    rows = list(corpus.rows("train", 0, 2))
    rows[1]["image"] = {"bytes": b"no image", "path": "a.png"}
    store = ShardStore(write_corpus(tmp_path / "damaged", {"train": rows}).folder, "train", IMAGES)
    assert len(store.samples([0])) == 1
    with pytest.raises(ValueError, match=rows[1]["image_id"]):
        store.samples([1])


def test_a_mixture_takes_shards_and_frames_by_weight(corpus, store, collator, tmp_path):
    folder = write_jsonl_source(tmp_path / "other", 10)
    spec = parse_data_spec(f"{corpus.folder}*2 + jsonl:{folder}*1")
    prepare_data(spec, "train", tmp_path / "cache", IMAGES, num_workers=1)
    mixed = open_data(spec, "train", tmp_path / "cache", IMAGES)
    assert isinstance(mixed, MixtureStore)
    assert mixed.decodes_images
    assert len(mixed) == 42 + 7
    assert_same(mixed.samples([41])[0], store.samples([41])[0])
    assert [sample.sample_id for sample in mixed.samples([43, 5, 42])] == [
        "other/images/001.png", store.samples([5])[0].sample_id, "other/images/000.png",
    ]  # fmt: skip
    assert len(list(mixed.texts())) == 2 * len(mixed) == 2 * len(list(mixed.examples()))
    alone = ids(batches(mixed, collator, range(30)))
    shared = [batches(mixed, collator, range(30), rank=rank, num_processes=2, num_workers=2) for rank in range(2)]
    assert [name for pair in zip(*shared) for name in ids(pair)] == alone
    of_corpus = [name for name in alone if name.startswith("demo_source/")]
    assert 0.5 < len(of_corpus) / len(alone) < 0.8
    assert of_corpus[:42] == ids(batches(store, collator, range(7)))  # its own first epoch, in the order of its files


def test_built_corpora_need_no_preparation(corpus, tmp_path):
    spec = parse_data_spec(str(corpus.folder))
    prepare_data(spec, "train", tmp_path / "cache", IMAGES, num_workers=1)
    assert list((tmp_path / "cache").iterdir()) == []
    assert isinstance(open_data(spec, "train", tmp_path / "cache", IMAGES), ShardStore)
