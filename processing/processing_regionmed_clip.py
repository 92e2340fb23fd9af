"""RegionMedClipProcessor: images, their regions and texts -> the batch of tensors of the model, and back to pixels.

Boxes follow the convention at the head of `region_boxes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .grounding import (
    best_first,
    boxes_in_image,
    check_grounding,
    check_region_outputs,
    fitting_proposals,
    hot_boxes,
)
from .image_processing_regionmed_clip import RegionMedClipImageProcessor
from .region_boxes import FrameGeometry, heat_to_pixels, to_numpy
from .region_inputs import check_count, check_sizes, check_texts, check_unicode, listed, match_texts, region_tensors
from .source_processors import source_parts
from .text_tower_check import check_saved_text_tower, check_text_tower

MAX_KNOWN_LENGTH = 1_000_000  # transformers marks "no limit" by a huge model_max_length


class RegionMedClipProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of a call beyond its named ones: those of the tokenizer and of the image processor, and:

    box_format: see `RegionMedClipProcessor.__call__`.
    """

    box_format: str


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
    def from_clip_pretrained(
        cls, path: str | Path, geometry: str = "pad", **image_settings: Any
    ) -> RegionMedClipProcessor:
        """The processor for a model that `RegionMedClipModel.from_clip_pretrained` makes of the same checkpoint.

        Tokenizer, frame size, interpolation and colour statistics are the checkpoint's own, see `source_processors.py`.

        Args:
            path: folder or Hub id; of open_clip's format a folder.
            geometry: "pad" shows the whole image; "source" repeats the checkpoint's own pixels, crops included.
            image_settings: of the image processor, in place of the checkpoint's.

        Raises:
            ValueError: for a checkpoint without a grid of patches, without the files needed, or whose pixels cannot be
                repeated.
        """
        return cls(**source_parts(path, geometry, image_settings))

    def check_text_tower(self, model_config: Mapping[str, Any]) -> None:
        """None; a ValueError where the tokenizer does not fit the text tower, see `text_tower_check`.

        Args:
            model_config: `model.config.to_dict()`.
        """
        check_text_tower(self.tokenizer, self.text_pad_to_full_length, model_config)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """What the library's gives; the model saved in this folder, if any, is checked first: `check_text_tower`."""
        check_saved_text_tower(self.tokenizer, self.text_pad_to_full_length, save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

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
        """Names of the tensors of a call with images and text; regions and their texts add those of DESIGN.md."""
        return ["pixel_values", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        boxes: Any = None,
        masks: Any = None,
        points: Any = None,
        region_text: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """BatchFeature with the tensors of DESIGN.md section 2 that the arguments call for.

        Args:
            images: one image or a list of B images; anything `medical_image.decode_image` reads.
            text: one text or a list of T image-level texts.
            boxes: one list of boxes per image, in original pixels; an empty list, or None, where an image has none. For
                one image the outer list may be left out. An image has boxes, masks or points, never two kinds; the
                images of a batch may differ.
            masks: per image an (R, H, W) array, or a list of R masks: arrays, pictures of a mask (PIL image, path or
                bytes), COCO run lengths {"size", "counts"} or {"polygons": segmentation}; see `mask_inputs`. Or None.
            points: one list of (x, y) per image, in original pixels, or None.
            region_text: one list of texts per image, a text (or None) for each of its regions: every distinct text is
                encoded once and `region_text_index` (B, R) says which belongs to which region (-1 = none). Or one flat
                list of texts: candidates for all regions, encoded as given, without an index.
            box_format: "xyxy" (default), "xywh", or "cxcywh_fraction" (fractions of the original image).
            return_tensors: "pt" (default), "np" or None (arrays).
            kwargs: these two, and settings of the tokenizer and the image processor for this call, flat or as
                `text_kwargs`, `images_kwargs` and `common_kwargs`. Unknown ones are errors.

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
        box_format = kwargs.pop("box_format", "xyxy")
        kwargs = kwargs.pop("common_kwargs", {}) | kwargs
        return_tensors = kwargs.pop("return_tensors", "pt")
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
        framed = image_processor.frame_all(images)
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
        valid = {"images_kwargs": self.image_processor.valid_kwargs, "text_kwargs": names["text_kwargs"]}
        known = {group: set(settings.__annotations__) for group, settings in valid.items()}
        unknown = sorted(set(kwargs).difference(valid, *known.values()))
        unknown += [
            f"{group}[{name!r}]" for group in valid for name in sorted(set(kwargs.get(group, {})) - known[group])
        ]
        if unknown:
            raise ValueError(
                f"arguments {unknown} are not known; regions are given by boxes, masks or points, their texts by "
                "region_text, and the rest are settings of the tokenizer or the image processor. Check the spelling."
            )
        if not kwargs:
            return {}, {}
        init_kwargs = self.tokenizer.init_kwargs
        # of the library's own class: transformers 5.20 takes every annotation of a class given here for a modality
        merged = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=init_kwargs, **kwargs)
        image_names = set(kwargs) | set(kwargs.get("images_kwargs", {}))
        images_kwargs = {name: value for name, value in merged["images_kwargs"].items() if name in image_names}
        text_names = set(kwargs) | set(kwargs.get("text_kwargs", {}))
        text_kwargs = {name: value for name, value in merged["text_kwargs"].items() if name in text_names}
        return images_kwargs, text_kwargs

    def _encode(self, texts: list[str], text_kwargs: dict[str, Any]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` (T, L) int64 arrays; a ValueError for a text that is no Unicode."""
        check_unicode(texts)
        has_limit = self.tokenizer.model_max_length <= MAX_KNOWN_LENGTH
        has_limit = has_limit or "max_length" in text_kwargs
        settings: dict[str, Any] = {"padding": True, "truncation": has_limit}
        init_kwargs = self.tokenizer.init_kwargs
        if init_kwargs.get("padding") == "max_length":  # max_length alone may only be left over from an earlier call
            settings |= {"padding": "max_length", "max_length": init_kwargs.get("max_length"), "truncation": True}
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
        region_text = listed(region_text)
        if isinstance(region_text, str) or (region_text and all(isinstance(item, str) for item in region_text)):
            return _as_region(self._encode(check_texts(region_text, "region_text"), text_kwargs))
        texts, index = match_texts(region_text, num_regions, region_mask)
        encoded = _as_region(self._encode(texts, text_kwargs)) if texts else {}
        return encoded | {"region_text_index": index}

    def geometries(self, target_sizes: Any) -> list[FrameGeometry]:
        """How images of these original sizes (height, width) lie in the model frame."""
        return [self.image_processor.geometry_for(width, height) for height, width in check_sizes(target_sizes)]

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
        check_region_outputs(outputs, region_boxes, region_mask)
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
                keep &= torch.from_numpy(to_numpy(region_mask[i]).astype(bool))
            pixels = geometry.frame_fractions_to_boxes(region_boxes[i])
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

    def post_process_proposals(self, proposals: Any, target_sizes: Any) -> list[dict[str, torch.Tensor]]:
        """Per image the proposed regions in original pixels, best first.

        Args:
            proposals: what `model.propose_regions` gives.
            target_sizes: (height, width) of every original image, B pairs.

        Returns:
            B dicts: "boxes" (n, 4) float32 xyxy in original pixels, clipped to the image, and "scores" (n,) float32.
            n is 0 where the model abstained; boxes wholly in the padding are left out.
        """
        scores, is_proposed = to_numpy(proposals.scores), to_numpy(proposals.region_mask)  # (B, K)
        geometries = self.geometries(target_sizes)
        check_count("target_sizes", len(geometries), len(scores), "image")
        results = []
        for boxes, mask, score, geometry in zip(to_numpy(proposals.region_boxes), is_proposed, scores, geometries):
            pixels, is_inside = boxes_in_image(boxes, geometry)
            keep = mask & is_inside
            results.append({"boxes": torch.from_numpy(pixels[keep]), "scores": torch.from_numpy(score[keep]).float()})
        return results

    def post_process_grounding(
        self,
        outputs: Any,
        target_sizes: Any,
        text_labels: Sequence[str] | None = None,
        *,
        source: str = "proposals",
        threshold: float = 0.65,
        box_threshold: float = 0.0,
        heat_share: float = 0.9,
        max_boxes: int | None = None,
    ) -> list[dict[str, Any]]:
        """Per image the boxes of every phrase: none where the model does not see it, one, or many.

        Args:
            outputs: what `model.ground_phrases` gives for B images and T phrases.
            target_sizes: (height, width) of every original image, B pairs.
            text_labels: the T phrases, in the order they were encoded.
            source: "proposals" takes the model's proposed regions that fit a phrase; "heat" the connected groups of hot
                patches, for a model whose proposals are not trained: it points well, but knows whole patches only.
            threshold: least cosine of a box and its phrase. Cosines differ from model to model: set it by known pairs.
            box_threshold: of "proposals"; least score of the proposal itself.
            heat_share: of "heat"; how far from the median of a phrase's map to its peak a patch must reach.
            max_boxes: most boxes of a phrase in an image; None: no limit.

        Returns:
            B dicts, best box first: "scores" (n,) float32, the cosine ("heat": the highest in the group); "labels" (n,)
            int64, the phrase; "boxes" (n, 4) float32 xyxy in original pixels; with `text_labels` also "text_labels", n
            strings. A box that fits several phrases is there for each of them.

        Raises:
            ValueError: for a setting out of its range, or outputs of another call.
        """
        check_grounding(outputs, source, threshold, box_threshold, heat_share, max_boxes)
        geometries = self.geometries(target_sizes)
        heat = to_numpy(outputs.heat)  # (B, T, h, w)
        check_count("target_sizes", len(geometries), len(heat), "image")
        if text_labels is not None:
            check_count("text_labels", len(text_labels), heat.shape[1], "phrase")
        if source == "proposals":
            is_proposed = to_numpy(outputs.region_mask) & (to_numpy(outputs.region_scores) >= box_threshold)
            proposed = zip(to_numpy(outputs.phrase_similarity), to_numpy(outputs.region_boxes), is_proposed)
            found = [fitting_proposals(*one, threshold) for one in proposed]
        else:
            found = [hot_boxes(one, geometry, threshold, heat_share) for one, geometry in zip(heat, geometries)]
        results = []
        for one, geometry in zip(found, geometries):
            labels, scores, boxes = map(torch.from_numpy, best_first(one, geometry, max_boxes))
            results.append({"scores": scores, "labels": labels, "boxes": boxes})
            if text_labels is not None:
                results[-1]["text_labels"] = [text_labels[label] for label in labels.tolist()]
        return results

    def post_process_heatmap(self, heat: Any, target_sizes: Any) -> list[np.ndarray]:
        """Per image its patch maps at (height, width) in original pixels, float32, bilinear, padding removed.

        Args:
            heat: (B, h, w), or (B, T, h, w) of T texts; tensor or array over the patch grid, for instance cosines.
            target_sizes: (height, width) of every original image, B pairs.

        Returns:
            B arrays (height, width) or (T, height, width); NaN marks what a cropping geometry kept from the model.
        """
        maps = to_numpy(heat)
        if maps.ndim not in (3, 4):
            raise ValueError(
                f"heat has shape {maps.shape}; it must be (images, h, w) or (images, texts, h, w). Give one map as "
                "heat[None]."
            )
        geometries = self.geometries(target_sizes)
        check_count("target_sizes", len(geometries), len(maps), "image")
        return [heat_to_pixels(one, geometry) for one, geometry in zip(maps, geometries)]


def _as_region(encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoded texts under the names of region texts."""
    return {f"region_{name}": array for name, array in encoded.items()}
