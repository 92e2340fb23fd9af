"""Prepared samples become the batch of DESIGN.md section 2: ragged regions padded, every distinct text once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from regionmed_clip.processing.corpus.captions import Statement
from regionmed_clip.processing.corpus.image_texts import NegativeText
from regionmed_clip.processing.corpus.text_facts import NO_FACTS, NUM_FACTS, statement_facts
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.augmented_samples import PositionedSamples, SampleSettings
from regionmed_clip.train.collator import Collator
from regionmed_clip.train.frame_store import StoredSample
from regionmed_clip.train.sample_order import SampleOrder
from regionmed_clip.train.tokenizer import train_tokenizer

TEXTS = ["nodule in the left lung", "effusion", "normal chest radiograph"]


@pytest.fixture(scope="module")
def collator() -> Collator:
    image_processor = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=12)
    return Collator(RegionMedClipProcessor(image_processor, train_tokenizer(TEXTS, 300, 16)))


def sample(name: str, caption: str, region_texts: tuple[str, ...]) -> StoredSample:
    boxes = np.tile(np.array([0.25, 0.25, 0.75, 0.5], dtype=np.float32), (len(region_texts), 1))
    keys = tuple(100 + TEXTS.index(text) if text else -1 for text in region_texts)
    frame = np.full((3, 24, 24), 128, dtype=np.uint8)
    return StoredSample(
        name, frame, caption, TEXTS.index(caption) + 10, boxes, region_texts, keys, region_texts, "test"
    )


def chosen(*samples: StoredSample):
    return [(item, np.arange(len(item.boxes))) for item in samples]


def test_each_distinct_text_is_tokenised_once_and_pointed_at(collator):
    batch = collator(
        chosen(
            sample("a", TEXTS[0], (TEXTS[0], TEXTS[1])),
            sample("b", TEXTS[2], ()),
            sample("c", TEXTS[2], (TEXTS[1],)),
        )
    )
    assert batch["sample_id"] == ["a", "b", "c"]
    assert batch["text_index"].tolist() == [0, 1, 1]
    assert batch["text_keys"].tolist() == [10, 12, *[-1] * 14]  # rows are filled up with placeholders of key -1
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (16, 16)
    assert (batch["input_ids"][0] != batch["input_ids"][1]).any()
    assert batch["region_text_index"].tolist() == [[0, 1], [-1, -1], [1, -1]]
    assert batch["region_text_keys"].tolist() == [100, 101, *[-1] * 14]
    assert batch["region_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert torch.equal(batch["region_boxes"][1], torch.zeros(2, 4))


def test_an_image_of_which_regions_were_left_out_is_told(collator):
    whole, partial = sample("a", TEXTS[0], (TEXTS[0], TEXTS[1])), sample("b", TEXTS[0], (TEXTS[0], TEXTS[1]))
    batch = collator([(whole, np.array([1, 0])), (partial, np.array([1]))])
    assert batch["region_is_complete"].tolist() == [True, False]


def test_a_region_without_text_takes_part_without_one(collator):
    batch = collator(chosen(sample("a", TEXTS[2], ("", TEXTS[1]))))
    assert batch["region_mask"].tolist() == [[True, True]]
    assert batch["region_text_index"].tolist() == [[-1, 0]]


def test_an_image_of_which_nothing_is_known_has_no_text(collator):
    unknown = replace(sample("b", TEXTS[2], ()), caption_key=-1)
    batch = collator(chosen(sample("a", TEXTS[2], ()), unknown))
    assert batch["text_index"].tolist() == [0, -1]
    assert batch["text_keys"].tolist() == [12, *[-1] * 15]
    alone = collator(chosen(unknown))
    assert alone["text_index"].tolist() == [-1]
    assert alone["text_keys"].tolist() == [-1] * 16


def test_placeholder_texts_do_not_change_the_loss(collator):
    model = tiny_model()
    items = chosen(sample("a", TEXTS[0], (TEXTS[0], TEXTS[1])), sample("b", TEXTS[2], (TEXTS[1],)))
    batch = collator(items)
    batch["pixel_values"] = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for name in ("input_ids", "region_input_ids"):
        batch[name] = batch[name] % 50  # the tiny vocabulary
    padded = model(**batch, return_loss=True)
    real = {
        name: batch[name][:2]
        for name in batch
        if "input_ids" in name or "attention_mask" in name or "_keys" in name or "_facts" in name
    }
    exact = model(**{**batch, **real}, return_loss=True)
    for name, loss in exact.loss_terms.items():
        torch.testing.assert_close(padded.loss_terms[name], loss, atol=1e-6, rtol=0)


def test_a_batch_without_regions_keeps_the_same_keys_with_a_placeholder_text(collator):
    batch = collator(chosen(sample("a", TEXTS[2], ())))
    assert set(batch) == set(collator(chosen(sample("a", TEXTS[2], (TEXTS[1],)))))
    assert batch["region_mask"].tolist() == [[False]]
    assert batch["region_text_keys"].tolist() == [-1] * 16


def test_pixel_values_are_those_of_the_processor(collator):
    item = sample("a", TEXTS[2], ())
    direct = collator.processor(images=item.frame.transpose(1, 2, 0), return_tensors="pt")["pixel_values"]
    assert torch.equal(collator(chosen(item))["pixel_values"], direct)


def test_positions_read_the_samples_of_the_order_with_at_most_so_many_regions():
    class Store:
        def samples(self, indices):
            return [sample(str(index), TEXTS[2], (TEXTS[1],) * 5) for index in indices]

    order = SampleOrder(6, seed=2)
    drawn = PositionedSamples(Store(), order, SampleSettings(max_regions=3)).__getitems__([4, 5, 6, 7])
    assert [item.sample_id for item, _ in drawn] == [str(index) for index in order.indices(4, 8)]
    assert all(len(regions) == 3 for _, regions in drawn)


NODULE, LEFT_NODULE = (statement_facts(Statement("nodule", laterality=side)) for side in (None, "left"))


def known_sample(name: str, texts: dict[str, tuple[int, ...]], caption_facts=()) -> StoredSample:
    """A sample whose regions' texts have these facts."""
    facts = np.array(list(texts.values()), dtype=np.int64).reshape(-1, NUM_FACTS)
    caption_facts = np.array(caption_facts, dtype=np.int64).reshape(-1, NUM_FACTS)
    return replace(sample(name, TEXTS[2], tuple(texts)), region_facts=facts, caption_facts=caption_facts)


def negative(text: str, key: int) -> NegativeText:
    return NegativeText(text, key, "finding")


def test_facts_of_captions_and_region_texts_stand_beside_their_keys(collator):
    two = known_sample("a", {TEXTS[0]: LEFT_NODULE}, [NODULE, LEFT_NODULE])
    one = replace(known_sample("b", {TEXTS[1]: NO_FACTS}, [NODULE]), caption=TEXTS[0], caption_key=10)
    none = replace(sample("c", TEXTS[1], ()), caption_key=11)
    batch = collator(chosen(two, one, none))
    assert batch["text_facts"].dtype == batch["region_text_facts"].dtype == torch.int64
    assert batch["text_facts"].shape == (16, 2, NUM_FACTS)
    assert batch["text_facts"][:3].tolist() == [
        [list(NODULE), list(LEFT_NODULE)], [list(NODULE), list(NO_FACTS)], [list(NO_FACTS)] * 2
    ]  # fmt: skip
    assert batch["region_text_facts"].tolist() == [list(LEFT_NODULE), *[list(NO_FACTS)] * 15]
    assert not batch["text_facts"][3:].any()


def test_all_regions_of_an_image_are_told_once_each_chosen_or_not(collator):
    many = known_sample("a", {TEXTS[0]: LEFT_NODULE, TEXTS[1]: NODULE})
    twice = replace(
        many, region_texts=(TEXTS[0],) * 2, region_keys=(100,) * 2, region_facts=np.tile(LEFT_NODULE, (2, 1))
    )
    batch = collator([(many, np.array([1])), (twice, np.array([0])), (sample("c", TEXTS[2], ()), np.arange(0))])
    assert batch["image_region_keys"].tolist() == [[100, 101], [100, -1], [-1, -1]]
    assert batch["image_region_facts"].tolist() == [
        [list(LEFT_NODULE), list(NODULE)], [list(LEFT_NODULE), list(NO_FACTS)], [list(NO_FACTS)] * 2
    ]  # fmt: skip
    assert batch["region_text_keys"].tolist() == [101, 100, *[-1] * 14]


def test_without_negatives_there_is_no_tensor_for_them(collator):
    items = chosen(replace(sample("a", TEXTS[2], (TEXTS[0],)), drawn_negatives=((negative(TEXTS[1], 101),),)))
    assert "negative_text_index" not in collator(items)
    assert collator(items)["region_text_keys"].tolist() == [100, *[-1] * 15]


def test_negatives_follow_the_regions_own_texts_and_share_rows_and_facts_with_them(collator):
    first = replace(
        known_sample("a", {TEXTS[0]: LEFT_NODULE}),
        drawn_negatives=((negative("no nodule", 7), negative(TEXTS[1], 101)),),
    )
    other_words = negative("a nodule on the left", 100)  # means what the first region's text means
    second = replace(known_sample("b", {TEXTS[1]: NODULE, TEXTS[2]: NO_FACTS}), drawn_negatives=((), (other_words,)))
    batch = Collator(collator.processor, num_negatives=3)(chosen(first, second))
    assert batch["region_text_index"].tolist() == [[0, -1], [1, 2]]
    assert batch["region_text_keys"].tolist() == [100, 101, 102, 7, 100, *[-1] * 11]
    assert batch["negative_text_index"].tolist() == [[[3, 1, -1], [-1] * 3], [[-1] * 3, [4, -1, -1]]]
    assert batch["region_text_facts"][:5].tolist() == [
        list(LEFT_NODULE), list(NODULE), list(NO_FACTS), list(NO_FACTS), list(LEFT_NODULE)
    ]  # fmt: skip
    without = collator(chosen(first, second))
    for name in set(without) - {"sample_id", "region_input_ids", "region_attention_mask"}:
        if not name.startswith("region_text_"):
            assert torch.equal(batch[name], without[name]), name


def test_negatives_belong_to_the_chosen_regions(collator):
    drawn = ((negative("first", 1),), (negative("second", 2),))
    both = replace(sample("a", TEXTS[2], (TEXTS[0], TEXTS[1])), drawn_negatives=drawn)
    batch = Collator(collator.processor, num_negatives=1)([(both, np.array([1]))])
    assert batch["region_text_keys"][:2].tolist() == [101, 2]
    assert batch["negative_text_index"].tolist() == [[[1]]]
