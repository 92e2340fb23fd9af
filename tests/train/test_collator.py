"""Prepared samples become the batch of DESIGN.md section 2: ragged regions padded, every distinct text once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.collator import Collator, PositionedSamples
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
        name: batch[name][:2] for name in batch if "input_ids" in name or "attention_mask" in name or "_keys" in name
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
    drawn = PositionedSamples(Store(), order, max_regions=3).__getitems__([4, 5, 6, 7])
    assert [item.sample_id for item, _ in drawn] == [str(index) for index in order.indices(4, 8)]
    assert all(len(regions) == 3 for _, regions in drawn)
