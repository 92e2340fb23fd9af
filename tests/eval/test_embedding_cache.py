"""Kept embeddings: found again by what made them, and made anew whenever that changed or the file cannot be trusted."""

from __future__ import annotations

import copy
import hashlib
import shutil
import warnings

import numpy as np
import pytest
import torch

from regionmed_clip.eval.tasks import embedding_cache
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.embedding_cache import (
    EmbeddingCache,
    default_cache_folder,
    describe_model,
    embed_cached,
    hash_example,
)


@pytest.fixture
def examples(draw_example):
    """Eight examples with up to 2 regions, each with the hash of its image."""
    return [with_hash(draw_example(i, num_regions=i % 3)) for i in range(8)]


def with_hash(example: dict) -> dict:
    """The example as a corpus gives it."""
    return {**example, "sha256": hashlib.sha256(example["image"]["bytes"]).hexdigest()}


@pytest.fixture
def cache(tmp_path):
    """A cache in a folder that does not exist yet."""
    return EmbeddingCache(tmp_path / "kept")


def embed(model, processor, examples, cache, reading="roi"):
    """The split by way of the cache."""
    key = describe_model(model, processor, "cpu")
    options = {"readings": [reading], "cache": cache, "model_key": key, "batch_size": 3, "progress": False}
    return embed_cached(model, processor, examples, **options)[reading]


def count_passes(monkeypatch) -> list[int]:
    """A list that gets the number of images whenever some are embedded."""
    seen: list[int] = []
    real = embedding_cache.embed_batch
    monkeypatch.setattr(
        embedding_cache, "embed_batch", lambda m, p, batch, **kw: (seen.append(len(batch)), real(m, p, batch, **kw))[1]
    )
    return seen


def assert_same(first, second) -> None:
    """Every array and list of two embedded splits is equal, bit for bit."""
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_a_split_is_embedded_once_and_comes_back_bit_for_bit(model, processor, examples, cache, monkeypatch):
    seen = count_passes(monkeypatch)
    first = embed(model, processor, examples, cache)
    assert seen == [3, 3, 2]
    again = embed(model, processor, examples, EmbeddingCache(cache.folder))
    assert seen == [3, 3, 2]
    assert_same(first, again)
    assert_same(first, embed_examples(model, processor, examples, batch_size=3, progress=False))
    assert first.num_regions == 7


def test_regions_outside_the_frame_stay_outside_when_the_split_comes_from_the_cache(
    model, processor, examples, cache, monkeypatch
):
    real = embedding_cache.embed_batch

    def lose_a_region(*args, **options):
        computed = real(*args, **options)
        is_inside = computed.is_inside.copy()
        is_inside[0] = False
        embeds = {name: rows[1:] for name, rows in computed.region_embeds.items()}
        colours = computed.region_colour_size[1:]
        return embedding_cache.ComputedRows(
            image_embeds=computed.image_embeds, region_embeds=embeds, is_inside=is_inside, region_colour_size=colours
        )

    monkeypatch.setattr(embedding_cache, "embed_batch", lose_a_region)
    first = embed(model, processor, examples, cache)
    assert first.num_regions_outside == 3  # one of each of the three batches
    assert len(first.region_texts) <= first.num_regions == 4
    assert_same(first, embed(model, processor, examples, cache))


CHANGES = {
    "a box": lambda e: {**e, "regions": [{**r, "box": [0, 0, 5, 5]} for r in e["regions"]]},
    "a region's text": lambda e: {**e, "regions": [{**r, "description": "cyst"} for r in e["regions"]]},
    "a caption": lambda e: {**e, "caption": "another"},
    "the image": lambda e: {**e, "sha256": "0" * 64},
    "the window": lambda e: {**e, "window": [0.0, 100.0]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_an_embedding_depends_on_changes_the_hash_of_an_example(examples, change):
    assert hash_example(examples[2]) == hash_example(copy.deepcopy(examples[2]))
    assert hash_example(change(examples[2])) != hash_example(examples[2])


def test_another_model_processor_or_reading_has_entries_of_its_own(model, processor, examples, cache, monkeypatch):
    seen = count_passes(monkeypatch)
    embed(model, processor, examples[:2], cache)
    moved, wider = copy.deepcopy(model), copy.deepcopy(processor)
    with torch.no_grad():
        next(moved.parameters()).add_(0.5)
    wider.image_processor.image_mean = [0.1, 0.2, 0.3]
    embed(moved, processor, examples[:2], cache)
    embed(model, wider, examples[:2], cache)
    embed(model, processor, examples[:2], cache, reading="crop")
    assert seen == [2] * 4
    assert len(list(cache.folder.iterdir())) == 4
    embed(moved, processor, examples[:2], cache)
    assert seen == [2] * 4


def of_another_transformers(monkeypatch, model) -> None:
    real = embedding_cache.version
    monkeypatch.setattr(embedding_cache, "version", lambda name: "0.1" if name == "transformers" else real(name))


def of_other_code(monkeypatch, model) -> None:
    monkeypatch.setattr(embedding_cache, "_hash_code", lambda: "0" * 64)


def of_another_configuration(monkeypatch, model) -> None:
    monkeypatch.setattr(model.config.vision_config, "layer_norm_eps", 0.5)


@pytest.mark.parametrize("change", [of_another_transformers, of_other_code, of_another_configuration])
def test_embeddings_that_something_else_made_are_not_taken(model, processor, examples, cache, monkeypatch, change):
    seen = count_passes(monkeypatch)
    embed(model, processor, examples[:2], cache)
    change(monkeypatch, model)
    embed(model, processor, examples[:2], cache)
    assert seen == [2, 2]


def test_a_folder_that_cannot_be_written_to_costs_time_only(model, processor, examples, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="embeddings cannot be kept"):
        found = embed(model, processor, examples, EmbeddingCache(tmp_path / "file" / "kept"))
    assert_same(found, embed_examples(model, processor, examples, batch_size=3, progress=False))


def cut_short(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(("damage", "reason"), [(cut_short, "cannot be read"), (flip_a_bit, "are not those that were")])
def test_a_damaged_entry_is_told_of_and_made_anew(model, processor, examples, cache, damage, reason):
    first = embed(model, processor, examples, cache)
    (path,) = cache.folder.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=reason):
        again = embed(model, processor, examples, cache)
    assert_same(first, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(model, processor, examples, cache)  # the new entry is whole


def test_an_entry_under_a_foreign_name_is_not_taken(model, processor, examples, cache):
    embed(model, processor, examples[:3], cache)
    (path,) = cache.folder.iterdir()
    first = embed(model, processor, examples[3:6], cache)
    (other,) = (entry for entry in cache.folder.iterdir() if entry != path)
    shutil.copyfile(path, other)
    with pytest.warns(UserWarning, match="made of something else"):
        assert_same(first, embed(model, processor, examples[3:6], cache))


def test_an_interrupted_write_leaves_neither_an_entry_nor_a_rest(cache, monkeypatch):
    def stop(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(embedding_cache, "save_file", stop)
    with pytest.raises(OSError, match="disk full"):
        cache.store({"data": "a"}, {"image_embeds": np.zeros(2)})
    assert list(cache.folder.iterdir()) == []
    assert cache.load({"data": "a"}) is None


def test_examples_without_the_hash_of_their_image_are_refused(model, processor, draw_example, cache):
    with pytest.raises(ValueError, match="drawn-0 has no sha256 of its image"):
        embed(model, processor, [draw_example(0)], cache)
    with pytest.raises(ValueError, match="the split has no examples"):
        embed(model, processor, [], cache)


def test_the_default_folder_follows_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "regionmed_clip" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder().parts[-3:] == (".cache", "regionmed_clip", "embeddings")
