"""RegionMedClipProcessor: images, their regions and texts -> the batch of tensors of the model, and back to pixels.

Boxes follow the convention at the head of `region_boxes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_regionmed_clip import RegionMedClipImageProcessor, list_images
from .region_boxes import FrameGeometry, heat_to_pixels
from .region_inputs import check_count, check_texts, match_texts, region_tensors

MAX_KNOWN_LENGTH = 1_000_000  # transformers marks "no limit" by a huge model_max_length


class RegionMedClipProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of a call beyond its named ones: those of the tokenizer and of the image processor."""


class RegionMedClipProcessor(ProcessorMixin):
    """Images, regions and texts -> the tensors named in DESIGN.md section 2.

    Args:
        image_processor: a RegionMedClipImageProcessor.
        tokenizer: any fast tokenizer with a padding token.
        text_pad_to_full_length: pad every text to the tokenizer's `model_max_length` instead of the longest text of the
            call; needed where the text tower pools its last position (SigLIP).
    """

    valid_processor_kwargs = RegionMedClipProcessorKwargs

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, text_pad_to_full_length: bool = False):
        super().__init__(image_processor, tokenizer)
        if not hasattr(image_processor, "normalize_frames"):
            raise ValueError(
                f"image_processor is a {type(image_processor).__name__}; it must be a RegionMedClipImageProcessor, "
                "which knows where an image lies in the frame. Build one with the same size, image_mean and image_std."
            )
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; batches of texts need one. Set tokenizer.pad_token.")
        if text_pad_to_full_length and tokenizer.model_max_length > MAX_KNOWN_LENGTH:
            raise ValueError(
                "text_pad_to_full_length=True needs a length, but the tokenizer states no model_max_length. Set "
                "tokenizer.model_max_length to the number of positions of the text tower."
            )
        self.text_pad_to_full_length = text_pad_to_full_length

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """[image processor, tokenizer] of a saved processor; the image processor's class needs no registration."""
        kwargs.setdefault("trust_remote_code", False)  # left open, transformers asks on the terminal and waits 15 s
        return [
            RegionMedClipImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    @property
    def model_input_names(self) -> list[str]:
        """Names of all tensors a call can give."""
        regions = ["region_boxes", "region_mask", "region_coverage"]
        texts = ["input_ids", "attention_mask", "region_input_ids", "region_attention_mask", "region_text_index"]
        return ["pixel_values", *regions, *texts]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        boxes: Any = None,
        masks: Any = None,
        points: Any = None,
        region_text: Any = None,
        box_format: str = "xyxy",
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """BatchFeature with the tensors of DESIGN.md section 2 that the arguments call for.

        Args:
            images: one image or a list of B images; anything `medical_image.decode_image` reads.
            text: one text or a list of T image-level texts.
            boxes: one list of boxes per image, in original pixels; an empty list, or None, where an image has none. For
                one image the outer list may be left out. An image has boxes, masks or points, never two kinds; the
                images of a batch may differ.
            masks: one (R, H, W) bool array per image, or None.
            points: one list of (x, y) per image, in original pixels, or None.
            region_text: one list of texts per image, a text (or None) for each of its regions: every distinct text is
                encoded once and `region_text_index` (B, R) says which belongs to which region (-1 = none). Or one flat
                list of texts: candidates for all regions, encoded as given, without an index.
            box_format: "xyxy", "xywh", or "cxcywh_fraction" (fractions of the original image).
            return_tensors: "pt", "np" or None (arrays).
            kwargs: settings of the tokenizer and the image processor for this call, flat or as `text_kwargs` and
                `images_kwargs`. Unknown ones are errors.

        R is the largest number of regions of an image of the batch, at least 1; the rest is padding, region_mask False.
        Without `boxes`, `masks` and `points` there are no region tensors. `pixel_values` never depends on the regions.

        Raises:
            ValueError: naming the image, the region, the value, the rule and the way out.
        """
        regions = {"boxes": boxes, "masks": masks, "points": points}
        given = {kind: value for kind, value in regions.items() if value is not None}
        if images is None and (given or (text is None and region_text is None)):
            raise ValueError(
                f"images is missing{f' for {list(given)}' if given else ''}; give images, text or region_text."
            )
        images_kwargs, text_kwargs = self._split_kwargs(kwargs)
        data: dict[str, np.ndarray] = {}
        num_regions = None
        if images is not None:
            data, num_regions = self._image_arrays(images, given, box_format, images_kwargs)
        if text is not None:
            data |= self._encode(check_texts(text, "text"), text_kwargs)
        if region_text is not None:
            data |= self._region_text_arrays(region_text, num_regions, data.get("region_mask"), text_kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def _image_arrays(
        self, images: Any, given: dict[str, Any], box_format: str, images_kwargs: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], list[int] | None]:
        """`pixel_values` and the region arrays, if regions are given; and how many regions each image was given."""
        image_processor = self.image_processor.with_overrides(**images_kwargs)
        framed = [image_processor.frame(image, f"image {i}") for i, image in enumerate(list_images(images))]
        frames = torch.from_numpy(np.stack([frame for frame, _ in framed]))
        data = {"pixel_values": image_processor.normalize_frames(frames).numpy()}
        if not given:
            return data, None
        geometries = [geometry for _, geometry in framed]
        arrays, num_regions = region_tensors(given, geometries, image_processor.patch_size, box_format)
        return data | arrays, num_regions

    def encode_texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (T, L) int64; L: of the longest text, or full if set so."""
        return {name: torch.from_numpy(array) for name, array in self._encode(check_texts(texts, "text"), {}).items()}

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(image settings, text settings) of a call; a name that neither side knows is an error."""
        names = RegionMedClipProcessorKwargs.__annotations__
        groups = ("images_kwargs", "text_kwargs")
        known = {*groups, *names["text_kwargs"].__annotations__, *self.image_processor.valid_kwargs.__annotations__}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(
                f"arguments {unknown} are not known; regions are given by boxes, masks or points, their texts by "
                "region_text, and the rest are settings of the tokenizer or the image processor. Check the spelling."
            )
        if not kwargs:
            return {}, {}
        init_kwargs = self.tokenizer.init_kwargs
        merged = self._merge_kwargs(RegionMedClipProcessorKwargs, tokenizer_init_kwargs=init_kwargs, **kwargs)
        image_names = set(kwargs) | set(kwargs.get("images_kwargs", {}))
        images_kwargs = {name: value for name, value in merged["images_kwargs"].items() if name in image_names}
        text_names = set(kwargs) | set(kwargs.get("text_kwargs", {}))
        text_kwargs = {name: value for name, value in merged["text_kwargs"].items() if name in text_names}
        return images_kwargs, text_kwargs

    def _encode(self, texts: list[str], text_kwargs: dict[str, Any]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` (T, L) int64 arrays."""
        has_limit = self.tokenizer.model_max_length <= MAX_KNOWN_LENGTH
        settings: dict[str, Any] = {"padding": True, "truncation": has_limit or "max_length" in text_kwargs}
        if self.text_pad_to_full_length:
            settings |= {"padding": "max_length", "max_length": self.tokenizer.model_max_length}
        settings |= {**text_kwargs, "return_tensors": "np", "return_attention_mask": True}
        encoded = self.tokenizer(texts, **settings)
        return {name: np.asarray(encoded[name], dtype=np.int64) for name in ("input_ids", "attention_mask")}

    def _region_text_arrays(
        self,
        region_text: Any,
        num_regions: list[int] | None,
        region_mask: np.ndarray | None,
        text_kwargs: dict[str, Any],
    ) -> dict[str, np.ndarray]:
        """The arrays of region texts, matched with the regions (nested lists) or candidates for all (a flat list)."""
        if isinstance(region_text, str) or (region_text and all(isinstance(item, str) for item in region_text)):
            return _as_region(self._encode(check_texts(region_text, "region_text"), text_kwargs))
        texts, index = match_texts(region_text, num_regions, region_mask)
        encoded = _as_region(self._encode(texts, text_kwargs)) if texts else {}
        return encoded | {"region_text_index": index}

    def geometries(self, target_sizes: Any) -> list[FrameGeometry]:
        """How images of these original sizes (height, width) lie in the model frame."""
        return [self.image_processor.geometry_for(int(width), int(height)) for height, width in target_sizes]

    def post_process_regions(
        self,
        outputs: Any,
        region_boxes: torch.Tensor,
        region_mask: torch.Tensor | None = None,
        *,
        target_sizes: Any,
        text_labels: Sequence[str] | None = None,
        threshold: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Per image, its regions in original pixels, each with the candidate text it fits best.

        Args:
            outputs: of the model, with `logits_per_region` (B, R, U) against U candidate texts.
            region_boxes: (B, R, 4), as given to the model.
            region_mask: (B, R) bool, as given to the model; None = all regions are real.
            target_sizes: (height, width) of every original image, B pairs.
            text_labels: the U candidate texts, in the order they were encoded.
            threshold: regions whose best score is below it are left out.

        Returns:
            B dicts: "boxes" (n, 4) float32 xyxy in original pixels; "scores" (n,), the softmax over the candidates at
            the best one, and "labels" (n,) int64, its index; "probabilities" (n, U), the whole softmax; with
            `text_labels` also "text_labels", n strings. Padding is left out; the order is that of the given regions.
        """
        probabilities = outputs.logits_per_region.detach().float().softmax(dim=-1).cpu()  # (B, R, U)
        geometries = self.geometries(target_sizes)
        check_count("target_sizes", len(geometries), len(probabilities), "image")
        if text_labels is not None:
            check_count("text_labels", len(text_labels), probabilities.shape[-1], "candidate text")
        results = []
        for i, (image_probabilities, geometry) in enumerate(zip(probabilities, geometries)):
            scores, labels = image_probabilities.max(dim=-1)
            keep = scores >= threshold
            if region_mask is not None:
                keep &= region_mask[i].cpu()
            pixels = geometry.frame_fractions_to_boxes(region_boxes[i].detach().float().cpu().numpy())
            result = {
                "scores": scores[keep],
                "labels": labels[keep],
                "boxes": torch.from_numpy(pixels).float()[keep],
                "probabilities": image_probabilities[keep],
            }
            if text_labels is not None:
                result["text_labels"] = [text_labels[label] for label in result["labels"].tolist()]
            results.append(result)
        return results

    def post_process_heatmap(self, heat: Any, target_sizes: Any) -> list[np.ndarray]:
        """Per image its patch map (h, w) as (height, width) float32 in original pixels, bilinear, padding removed.

        Args:
            heat: (B, h, w) tensor or array over the patch grid, for instance similarities with a text.
            target_sizes: (height, width) of every original image, B pairs.

        Returns:
            B arrays; NaN marks what a cropping geometry kept from the model.
        """
        maps = heat.detach().float().cpu().numpy() if isinstance(heat, torch.Tensor) else np.asarray(heat)
        if maps.ndim != 3:
            raise ValueError(f"heat has shape {maps.shape}; it must be (images, h, w). Give one map as heat[None].")
        geometries = self.geometries(target_sizes)
        check_count("target_sizes", len(geometries), len(maps), "image")
        return [heat_to_pixels(one, geometry) for one, geometry in zip(maps, geometries)]


def _as_region(encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoded texts under the names of region texts."""
    return {f"region_{name}": array for name, array in encoded.items()}
