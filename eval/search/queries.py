"""Queries: a picture, a box in it, a text, or several of them, as one embedding, and the rows nearest to it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regionmed_clip.eval.search.corpus_rows import IMAGES, REGIONS
from regionmed_clip.eval.search.model_identity import describe_difference, identify
from regionmed_clip.eval.search.search_index import SearchIndex
from regionmed_clip.eval.tasks.embedding import embed_texts, evaluating
from regionmed_clip.eval.tasks.region_readings import unit_rows


class Searcher:
    """An index with the model whose embeddings it holds.

    Args:
        index: of `SearchIndex`.
        model, processor: of `load_model`.

    Raises:
        ValueError: the index was made with another model or processor; cosines between theirs would mean nothing.
    """

    def __init__(self, index: SearchIndex, model: Any, processor: Any, device: str | torch.device = "cpu"):
        difference = describe_difference(index.manifest["model"], identify(model, processor, device))
        if difference:
            raise ValueError(
                f"the index in {index.folder} was made with another model: {difference}, so cosines would mean "
                "nothing. Give the model it was made with, or make an index with this one."
            )
        self.index, self.model, self.processor, self.device = index, model, processor, device

    def embed(
        self,
        image: Any = None,
        box: Sequence[float] | None = None,
        text: str | None = None,
        **image_settings: Any,
    ) -> np.ndarray:
        """(D,) float32 of unit length: the image's, the region's or the text's embedding; of two, of their sum.

        Args:
            image: anything the processor reads, DICOM too.
            box: (x0, y0, x1, y1) in original pixels; then the region stands for the image.
            text: a description.
            image_settings: of the image processor for this image, such as `window` and `slice_index`.

        Raises:
            ValueError: neither image nor text; a box without an image, outside it or cut away by the model's frame.
        """
        if image is None and text is None:
            raise ValueError("the query is empty; give an image, an image with a box, a text, or both.")
        if image is None and (box is not None or image_settings):
            raise ValueError(f"the query has {'a box' if box is not None else 'image settings'} and no image; give it.")
        parts = [] if image is None else [self._embed_image(image, box, image_settings)]
        if text is not None:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"the query's text is {text!r}; it must say something. Leave it out otherwise.")
            parts.append(embed_texts(self.model, self.processor, [text], device=self.device)[0])
            self._warn_of_length(text)
        total = np.sum(parts, axis=0, dtype=np.float32)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length) or length < 1e-6:
            raise ValueError("image and text cancel each other out: the sum of their embeddings is zero. Ask by one.")
        return total / length

    def search(
        self,
        image: Any = None,
        box: Sequence[float] | None = None,
        text: str | None = None,
        *,
        among: str | None = None,
        k: int = 10,
        where: Mapping[str, str] | None = None,
        has_others_only: bool = False,
        is_exact: bool = False,
        **image_settings: Any,
    ) -> list[dict[str, Any]]:
        """At most k hits, best first: each a dict with "rank" from 1, "cosine", "level", "row" and the row's columns.

        Args:
            image, box, text, image_settings: see `embed`.
            among: "images" or "regions"; None: images for an image without a box, else regions where there are any.
            where: column -> value that hits must have; see `FILTERS`.
            has_others_only: leave out the query's own picture, known by its file's SHA-256, and its patient's others.
            is_exact: look at all rows, as is done anyway where hits are narrowed.
        """
        if among is None:
            is_of_regions = (box is not None or image is None) and self.index.num_rows(REGIONS)
            among = REGIONS if is_of_regions else IMAGES
        self.index.num_rows(among)  # refuses what is no level
        query = self.embed(image, box, text, **image_settings)
        is_allowed = self.index.allowed_rows(among, {} if where is None else where)
        if has_others_only:
            is_other = self._others(among, image)
            is_allowed = is_other if is_allowed is None else is_allowed & is_other
        cosines, rows = self.index.search(among, query, k, is_exact=is_exact, is_allowed=is_allowed)
        return [
            {"rank": rank, "cosine": float(cosine), "level": among, "row": int(row), **self.index.row(among, row)}
            for rank, (cosine, row) in enumerate(zip(cosines, rows, strict=True), start=1)
        ]

    def _embed_image(self, image: Any, box: Sequence[float] | None, image_settings: Mapping[str, Any]) -> np.ndarray:
        """(D,) of the image, or of its region in the box."""
        regions = {} if box is None else {"boxes": [[list(box)]]}
        inputs = self.processor(images=[image], **regions, **image_settings)
        if box is not None and not bool(inputs["region_mask"].any()):
            raise ValueError(
                f"box {list(box)} lies wholly outside what the model sees of the image, whose geometry crops. Give a "
                "box nearer to the middle, or a model whose processor pads."
            )
        with evaluating(self.model):
            output = self.model(**{name: value.to(self.device) for name, value in inputs.items()})
        return unit_rows(output.image_embeds if box is None else output.region_embeds[0])[0]

    def _warn_of_length(self, text: str) -> None:
        """None; a warning where the model does not read a text to its end."""
        num_tokens, most = len(self.processor.tokenizer(text)["input_ids"]), self.processor.tokenizer.model_max_length
        if num_tokens > most:
            warnings.warn(
                f"the query's text has {num_tokens} tokens, of which the model reads the first {most}; shorten it.",
                stacklevel=4,
            )

    def _others(self, among: str, image: Any) -> np.ndarray:
        """(N,) bool: the rows that are neither of the query's picture nor of its patient."""
        if not isinstance(image, (str, Path)):
            raise ValueError("has_others_only knows the query's picture by its file; give the image as a path.")
        sha256 = hashlib.sha256(Path(image).read_bytes()).hexdigest()
        is_own = np.array(self.index.column(among, "sha256"), dtype=object) == sha256
        patients = np.array(self.index.column(among, "patient_id"), dtype=object)
        sources = np.array(self.index.column(among, "source"), dtype=object)
        for source, patient in {(s, p) for s, p in zip(sources[is_own], patients[is_own]) if p is not None}:
            is_own |= (sources == source) & (patients == patient)
        return ~is_own
