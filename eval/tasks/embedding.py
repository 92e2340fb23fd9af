"""Embeds one split of a corpus: images, regions and unique texts as numpy arrays, every image decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.tasks.embedded_split import ComputedRows, EmbeddedSplit, SplitRows
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region_readings import TRAINED_READING, check_readings, encode_images, unit_rows
from regionmed_clip.eval.tasks.sharing import ALONE, Share


def embed_examples(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    region_reading: str = TRAINED_READING,
    progress: bool = True,
    share: Share = ALONE,
) -> EmbeddedSplit:
    """The embedded split of `examples` (dicts of the corpus builder), streamed batch by batch.

    Args:
        region_reading: how a region is read, one of `region_readings.READINGS`.
        share: the batches that this process embeds; all processes get the whole split.
    """
    readings = embed_readings(
        model,
        processor,
        examples,
        readings=(region_reading,),
        batch_size=batch_size,
        device=device,
        progress=progress,
        share=share,
    )
    return readings[region_reading]


def embed_readings(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    readings: Sequence[str],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
) -> dict[str, EmbeddedSplit]:
    """The embedded split under each region reading; images, texts and decoding are shared by all of them."""
    rows = SplitRows()
    parts: list[tuple[int, ComputedRows]] = []
    with embedding_bar(progress and share.is_main) as bar:
        for number, batch in enumerate(batched(examples, batch_size)):
            if share.is_own(number):
                parts.append((number, embed_batch(model, processor, batch, readings=readings, device=device)))
            for example in batch:
                rows.add(example)
            bar.update(len(batch))
    if not rows.images:
        raise ValueError(NO_EXAMPLES)
    computed = ComputedRows.join(share.join(parts))
    text_embeds = embed_texts(model, processor, rows.texts(computed.is_inside), device=device, share=share)
    return rows.finish(computed, text_embeds)


NO_EXAMPLES = "the split has no examples; an evaluation needs at least one. Check --data and --split."


def embedding_bar(is_shown: bool) -> tqdm:
    """The progress bar of a pass over images; silent where it is not to be shown, or not on a terminal."""
    return tqdm(desc="embed images", unit="img", disable=not is_shown or None, leave=False)


def embed_batch(
    model: Any, processor: Any, examples: Sequence[Mapping[str, Any]], *, readings: Sequence[str], device: Any
) -> ComputedRows:
    """What the model makes of a few examples, each decoded once."""
    check_readings(readings)
    image_processor = processor.image_processor
    with evaluating(model):
        images = [PreparedExample.read(example, image_processor, "crop" in readings) for example in examples]
        image_embeds, region_embeds = encode_images(model, image_processor, images, readings, device)
    return ComputedRows(
        image_embeds=image_embeds,
        region_embeds=region_embeds,
        is_inside=np.concatenate([image.is_visible for image in images]),
        region_colour_size=np.concatenate([image.colour_size() for image in images]),
    )


def embed_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    share: Share = ALONE,
) -> np.ndarray:
    """(T, D) float32 unit-length embeddings of `texts`, in order; each distinct text is encoded once.

    Args:
        share: the batches that this process encodes, where all are asked for the same texts; all get the whole.
    """
    unique = sorted(set(texts), key=lambda text: (len(text), text))  # like lengths together: less padding
    if not unique:
        return np.zeros((0, 0), dtype=np.float32)
    parts: list[tuple[int, np.ndarray]] = []
    with evaluating(model):
        for number, start in share.own(range(0, len(unique), batch_size)):
            inputs = processor.encode_texts(unique[start : start + batch_size])
            output = model.get_text_features(
                input_ids=inputs["input_ids"].to(device), attention_mask=inputs["attention_mask"].to(device)
            )
            parts.append((number, unit_rows(output.pooler_output)))
    embeds = np.concatenate(share.join(parts))
    row_of_text = {text: row for row, text in enumerate(unique)}
    return embeds[[row_of_text[text] for text in texts]]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode and inference mode inside the block; its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def batched(examples: Iterable[Mapping[str, Any]], batch_size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Lists of at most `batch_size` examples, in order."""
    batch: list[Mapping[str, Any]] = []
    for example in examples:
        batch.append(example)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
