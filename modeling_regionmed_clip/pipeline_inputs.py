"""What the pipelines share: which images a call means, and texts that the text tower takes whole."""

from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import load_image

from .towers import max_text_length

WEB_ADDRESSES = ("http://", "https://")


def is_several(image: Any) -> bool:
    """Whether these are several images: a list, a tuple or a dataset such as KeyDataset."""
    return isinstance(image, (list, tuple, torch.utils.data.Dataset))


def loaded(image: Any, timeout: float | None) -> Any:
    """The image, fetched if it is a web address; files are left to the processor, which reads DICOM and NIfTI too."""
    is_address = isinstance(image, str) and image.startswith(WEB_ADDRESSES)
    return load_image(image, timeout=timeout) if is_address else image


def encoded_whole(processor: Any, text_model: Any, texts: list[str], what: str) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (T, L) int64, nothing cut off.

    Args:
        processor: with `tokenizer`.
        text_model: the text tower that reads them.
        texts: T texts.
        what: what messages call one, for instance "question".

    Raises:
        ValueError: a text has more tokens than the tower has positions for.
    """
    encoded = dict(processor(text=texts, truncation=False))
    limit = max_text_length(text_model)
    if limit is not None:
        for text, num_tokens in zip(texts, encoded["attention_mask"].sum(dim=1).tolist(), strict=True):
            if num_tokens > limit:
                raise ValueError(
                    f"the {what} {text[:60]!r}... has {num_tokens} tokens and the text tower takes {limit}; give a "
                    "shorter one, or cut it."
                )
    return encoded


def as_corners(box: Any) -> dict[str, float]:
    """The box {"xmin", "ymin", "xmax", "ymax"}, as the library's own pipelines write it, of four numbers."""
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), (float(number) for number in box), strict=True))
