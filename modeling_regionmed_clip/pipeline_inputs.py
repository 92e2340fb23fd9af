"""What the pipelines share: which images a call means, and texts that the text tower takes whole."""

from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import load_image

from .towers import max_text_length

WEB_ADDRESSES = ("http://", "https://")
SAVED = "saved"  # the window that was saved with the processor
CHOSEN = {"window": None, "frame_index": None, "slice_index": None}  # for the processor, of what `pictures_of` gives


def is_several(image: Any) -> bool:
    """Whether these are several images: a list, a tuple or a dataset such as KeyDataset."""
    return isinstance(image, (list, tuple, torch.utils.data.Dataset))


def loaded(image: Any, timeout: float | None) -> Any:
    """The image, fetched if it is a web address; files are left to the processor, which reads DICOM and NIfTI too."""
    is_address = isinstance(image, str) and image.startswith(WEB_ADDRESSES)
    return load_image(image, timeout=timeout) if is_address else image


def image_settings(window: Any, timeout: float | None) -> dict[str, Any]:
    """`window` and `timeout`, those that are given."""
    is_saved = isinstance(window, str) and window == SAVED
    return ({} if is_saved else {"window": window}) | ({} if timeout is None else {"timeout": timeout})


def pictures_of(processor: Any, images: list[Any], window: Any, timeout: float | None) -> list[Any]:
    """The images as 8-bit pictures, as the model is shown them.

    Args:
        processor: with `image_processor`.
        images: anything that it reads, or web addresses.
        window: which measured values are black to white, see the image processor; SAVED: as saved with it.
        timeout: seconds to wait for an image from the web.
    """
    worker = processor.image_processor.with_overrides(**image_settings(window, None))
    return [worker.picture(loaded(image, timeout), f"image {i}") for i, image in enumerate(images)]


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
