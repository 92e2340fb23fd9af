"""What the pipelines share: which images a call means, its settings, and texts that the text tower takes whole."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import load_image

from .towers import max_text_length

WEB_ADDRESSES = ("http://", "https://")
SAVED = "saved"  # the window that was saved with the processor
CHOSEN = {"window": None, "frame_index": None, "slice_index": None}  # for the processor, of what `pictures_of` gives


def is_several(image: Any) -> bool:
    """Whether these are several images: a list, a tuple or a dataset, such as KeyDataset or `datasets.Dataset`."""
    if isinstance(image, (list, tuple, torch.utils.data.Dataset)):
        return True
    is_series = hasattr(image, "__len__") and hasattr(image, "__getitem__")
    is_one = isinstance(image, (str, bytes, bytearray)) or hasattr(image, "keys") or hasattr(image, "ndim")
    return is_series and not is_one  # an array has `ndim`, a dict and a header of DICOM have `keys`


def is_stream(image: Any) -> bool:
    """Whether these are a dataset or a generator, whose answers are given one by one."""
    return isinstance(image, Iterator) or (is_several(image) and not isinstance(image, (list, tuple)))


def refuse_beside_dicts(**given: Any) -> None:
    """None; a ValueError where anything is given beside dicts or a stream, which have their own."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(
            f"{', '.join(names)} is given beside dicts or a stream of images; put it into each dict: "
            f"{{'image': ..., {', '.join(f'{name!r}: ...' for name in names)}}}."
        )


def part_of_each(values: Any, name: str, num_images: int) -> list[Any]:
    """What is given of several images as a list; a ValueError where there is not one part for each."""
    parts = list(values)
    if len(parts) != num_images:
        raise ValueError(
            f"{name} has {len(parts)} entries for {num_images} images; give one list for each, [] where an image has "
            "none."
        )
    return parts


def whole_number(number: Any, name: str) -> int:
    """The number; a ValueError where it is not a whole one of at least 1."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name} is {number!r}; it must be a whole number of at least 1.")
    return int(number)


def check_regions(regions: Any) -> None:
    """None; a ValueError for anything but None and "proposed"."""
    if regions is not None and not (isinstance(regions, str) and regions == "proposed"):
        raise ValueError(f"regions is {regions!r}; it is 'proposed' or left out. To give regions, give boxes.")


def in_chunks(
    asks: Iterable[Any], batch_size: int | None, answer: Callable[[tuple[Any, ...]], Sequence[Any]]
) -> Iterator[Any]:
    """What `answer` gives for the asks, `batch_size` (None: 1) at a time; messages count images from the first ask."""
    batch_size = 1 if batch_size is None else whole_number(batch_size, "batch_size")
    return _in_chunks(iter(asks), batch_size, answer)


def _in_chunks(
    asks: Iterator[Any], batch_size: int, answer: Callable[[tuple[Any, ...]], Sequence[Any]]
) -> Iterator[Any]:
    first = 0
    while chunk := tuple(islice(asks, batch_size)):
        try:
            answers = answer(chunk)
        except ValueError as error:
            message = str(error)
            found = re.match(r"image (\d+)", message)
            if not first or found is None:
                raise
            raise ValueError(f"image {first + int(found[1])}{message[found.end() :]}") from error
        yield from answers
        first += len(chunk)


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
    """The box {"xmin", "ymin", "xmax", "ymax"}, as the library's own pipelines write it, to a ten-thousandth pixel."""
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(float(number), 4) for number in box), strict=True))
