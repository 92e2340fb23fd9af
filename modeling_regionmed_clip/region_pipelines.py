"""`pipeline("region-classification" or "region-grounding", model=FOLDER, trust_remote_code=True)`.

The first names what marked regions of an image show, the second finds the regions that show what is named. The library
is led here by `custom_pipelines` of config.json. Boxes are in original pixels, in its own form: xmin, ymin, xmax, ymax.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import Pipeline

from .outputs_regionmed_clip import PhraseGrounding, RegionMedClipOutput
from .pipeline_inputs import (
    CHOSEN,
    SAVED,
    as_corners,
    check_regions,
    encoded_whole,
    image_settings,
    in_chunks,
    is_several,
    is_stream,
    part_of_each,
    pictures_of,
    refuse_beside_dicts,
    whole_number,
)

REGION_KINDS = ("boxes", "masks", "points")


class _RegionPipeline(Pipeline):
    """An image at a time or many: what both pipelines share."""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    ask_keys: tuple[str, ...] = ("image",)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                f"{type(self).__name__} got no processor; give processor=RegionMedClipProcessor.from_pretrained(FOLDER)"
                ", or build it by pipeline(model=FOLDER, trust_remote_code=True)."
            )

    def _answer(self, image: Any, settings: dict[str, Any], **per_image: Any) -> Any:
        """What one image gets, of several a list, of a dataset or a generator an iterator; `batch_size` at a time."""
        batch_size = settings.pop("batch_size", self._batch_size)
        is_streamed = is_stream(image)
        is_single = not is_streamed and not is_several(image)
        images = [image] if is_single else image
        asks = images
        if is_streamed or any(isinstance(one, dict) for one in images):
            refuse_beside_dicts(**per_image)
        else:
            asks = _joined(images, per_image, is_single)
        answers = self._stream(asks, batch_size, settings)
        if is_single:
            return next(answers)
        return answers if is_streamed else list(answers)

    def _stream(self, asks: Iterable[Any], batch_size: int | None, settings: dict[str, Any]) -> Iterator[Any]:
        """What each image gets, `batch_size` of them in one forward pass."""
        call = super().__call__

        def answer(chunk: tuple[Any, ...]) -> Any:
            checked = [self._checked(ask if isinstance(ask, dict) else {"image": ask}) for ask in chunk]
            return call(tuple(checked), batch_size=1, **settings)

        return in_chunks(asks, batch_size, answer)

    def _checked(self, ask: dict[str, Any]) -> dict[str, Any]:
        """The dict of one image; a ValueError where it has no image or says something unknown."""
        if not set(ask) <= set(self.ask_keys):
            raise ValueError(f"what is given has the keys {sorted(ask)}; known are {', '.join(self.ask_keys)}.")
        if ask.get("image") is None:
            raise ValueError("no image is given; give image=..., a picture, an array, a path or a web address.")
        return ask

    def _encoded(
        self, asks: tuple[dict[str, Any], ...], labels: list[str], template: str, window: Any, timeout: float | None
    ) -> dict[str, Any]:
        """The tensors of the texts, the pictures that the model is shown, and how to read them."""
        pictures = pictures_of(self.processor, [ask["image"] for ask in asks], window, timeout)
        texts = [template.replace("{}", label) for label in labels]
        encoded = encoded_whole(self.processor, self.model.text_model, texts, "candidate label")
        target_sizes = [(picture.height, picture.width) for picture in pictures]
        return {**encoded, "pictures": pictures, "labels": labels, "target_sizes": target_sizes}

    def _shown(self, pictures: list[Any], **regions: Any) -> dict[str, Any]:
        """The tensors of pictures that have been read already, and of their regions."""
        tensors = dict(self.processor(images=pictures, **CHOSEN, **regions))
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        return tensors


class RegionClassificationPipeline(_RegionPipeline):
    """Says of every marked region of an image which of the candidate labels it fits."""

    ask_keys = ("image", *REGION_KINDS)

    def __call__(
        self,
        image: Any = None,
        candidate_labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        points: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Every region with its labels, best first, in the order in which the regions were given or proposed.

        Args:
            image: one image or a list: anything that the processor reads, or a web address; or one dict, a list, a
                dataset or a generator of dicts {"image", "boxes"} (or "masks", or "points").
            candidate_labels: one text or a list of different ones; may be set when the pipeline is built.
            boxes, masks, points: the regions of the image, see the processor; of several images one list for each.
            regions: "proposed" looks for regions by itself; not together with the former.
            hypothesis_template: a text with one "{}", where a label goes; "{}" by default, the label itself.
            box_format: of boxes: "xyxy" (default), "xywh" or "cxcywh_fraction".
            top_k: how many labels of a region; all by default.
            window: which measured values are black to white, see the image processor; "saved" by default: as saved with
                it. None for 8-bit pictures where a window was saved.
            batch_size: images in one forward pass; 1 by default.
            timeout: seconds to wait for an image from the web.

        Returns:
            for one image a list of {"box", "labels"}: the box {"xmin", "ymin", "xmax", "ymax"} in original pixels (of a
            mask the tight one, of a point the square of one patch), labels a list of {"score", "label"}, the scores a
            softmax over all candidates. For several images a list of such lists, of a stream an iterator. A region that
            the processor's geometry cuts away entirely has the box None and no labels.

        Raises:
            ValueError: for a missing image, no regions and none to be proposed, no labels or the same one twice, a
                label longer than the text tower takes, a box outside its image, an unknown key, a setting out of its
                range.
            TypeError: an unknown setting.
        """
        settings = kwargs if candidate_labels is None else {**kwargs, "candidate_labels": candidate_labels}
        return self._answer(image, settings, boxes=boxes, masks=masks, points=points)

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        hypothesis_template: str | None = None,
        regions: str | None = None,
        box_format: str | None = None,
        top_k: int | None = None,
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_regions(regions)
        prepare = _text_settings(candidate_labels, hypothesis_template) | image_settings(window, timeout)
        prepare |= {} if box_format is None else {"box_format": box_format}
        prepare |= {} if regions is None else {"regions": regions}
        return prepare, {}, {} if top_k is None else {"top_k": whole_number(top_k, "top_k")}

    def preprocess(
        self,
        input_: tuple[dict[str, Any], ...],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = "{}",
        regions: str | None = None,
        box_format: str = "xyxy",
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """The tensors of the model for some images, and `labels`, `target_sizes` and `num_regions` of each."""
        labels = _needed(candidate_labels)
        given = {kind: [ask.get(kind) for ask in input_] for kind in REGION_KINDS if any(kind in ask for ask in input_)}
        for i, ask in enumerate(input_):
            has_regions = any(ask.get(kind) is not None for kind in REGION_KINDS)
            if has_regions == (regions is not None):
                state = "regions are given and" if has_regions else "no boxes, masks or points are given, nor is"
                raise ValueError(f"image {i}: {state} regions={regions!r}; give regions, or have them proposed.")
        prepared = self._encoded(input_, labels, hypothesis_template, window, timeout)
        told = {"labels": labels, "target_sizes": prepared["target_sizes"]}
        texts = {f"region_{name}": prepared[name] for name in ("input_ids", "attention_mask")}
        if regions is not None:
            return texts | self._shown(prepared["pictures"]) | told
        shown = self._shown(prepared["pictures"], **given, box_format=box_format)
        told["num_regions"] = [max(len(ask[k]) for k in REGION_KINDS if ask.get(k) is not None) for ask in input_]
        return texts | shown | told

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        told = {name: input_tensors.pop(name, None) for name in ("labels", "target_sizes", "num_regions")}
        if "region_boxes" not in input_tensors:
            found = self.model.propose_regions(input_tensors["pixel_values"])
            input_tensors |= {"region_boxes": found.region_boxes, "region_mask": found.region_mask}
        logits = self.model(**input_tensors).logits_per_region
        regions = {name: input_tensors[name] for name in ("region_boxes", "region_mask")}
        return {**told, **regions, "logits_per_region": logits.float()}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int | None = None) -> list[list[dict[str, Any]]]:
        """The regions of some images, each as `__call__` gives them."""
        regions = model_outputs["region_boxes"], model_outputs["region_mask"]
        found = self.processor.post_process_regions(
            RegionMedClipOutput(logits_per_region=model_outputs["logits_per_region"]),
            *regions,
            target_sizes=model_outputs["target_sizes"],
        )
        labels, num_given = model_outputs["labels"], model_outputs["num_regions"]
        answers = []
        for row, image in enumerate(found):
            shown = [
                {"box": as_corners(box), "labels": best_labels(scores, labels, top_k)}
                for box, scores in zip(image["boxes"].tolist(), image["probabilities"].tolist(), strict=True)
            ]
            if num_given is None:  # proposed; some lie in the padding alone
                answers.append([region for region in shown if _has_area(region["box"])])
            else:
                is_seen = model_outputs["region_mask"][row].tolist()[: num_given[row]]
                answers.append([shown.pop(0) if seen else {"box": None, "labels": []} for seen in is_seen])
        return answers


class RegionGroundingPipeline(_RegionPipeline):
    """Finds in an image the regions that each candidate label describes; none where the model sees none."""

    def __call__(self, image: Any = None, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """The regions that show one of the labels, best first; the call is that of zero-shot-object-detection.

        Args:
            image: one image, a list, a dataset or a generator of images, or of dicts {"image"}; see the processor.
            candidate_labels: one text or a list of different ones: what to look for.
            hypothesis_template: a text with one "{}", where a label goes; "{}" by default, the label itself.
            threshold, source, box_threshold, heat_share: see the processor's `post_process_grounding`. The scores are
                cosines and differ from model to model: set the threshold by known pictures.
            top_k: most boxes of a label in an image; all by default.
            window, batch_size, timeout: see `RegionClassificationPipeline`.

        Returns:
            for one image a list of {"score", "label", "box"}, the box {"xmin", "ymin", "xmax", "ymax"} in original
            pixels; for several images a list of such lists, of a stream an iterator.

        Raises:
            ValueError, TypeError: as `RegionClassificationPipeline`.
        """
        settings = kwargs if candidate_labels is None else {**kwargs, "candidate_labels": candidate_labels}
        return self._answer(image, settings)

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        hypothesis_template: str | None = None,
        threshold: float | None = None,
        source: str | None = None,
        box_threshold: float | None = None,
        heat_share: float | None = None,
        top_k: int | None = None,
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        prepare = _text_settings(candidate_labels, hypothesis_template) | image_settings(window, timeout)
        show = {"threshold": threshold, "source": source, "box_threshold": box_threshold, "heat_share": heat_share}
        show["max_boxes"] = None if top_k is None else whole_number(top_k, "top_k")
        return prepare, {}, {name: value for name, value in show.items() if value is not None}

    def preprocess(
        self,
        input_: tuple[dict[str, Any], ...],
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = "{}",
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """The tensors of `ground_phrases` for some images, and `labels` and `target_sizes`."""
        prepared = self._encoded(input_, _needed(candidate_labels), hypothesis_template, window, timeout)
        return prepared | self._shown(prepared.pop("pictures"))

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        told = {name: input_tensors.pop(name) for name in ("labels", "target_sizes")}
        return told | dict(self.model.ground_phrases(**input_tensors))

    def postprocess(self, model_outputs: dict[str, Any], **settings: Any) -> list[list[dict[str, Any]]]:
        """The regions of some images, each as `__call__` gives them."""
        labels, sizes = model_outputs.pop("labels"), model_outputs.pop("target_sizes")
        outputs = PhraseGrounding(**{n: v if n == "region_mask" else v.float() for n, v in model_outputs.items()})
        return [
            [
                {"score": score, "label": label, "box": as_corners(box)}
                for score, label, box in zip(
                    image["scores"].tolist(), image["text_labels"], image["boxes"].tolist(), strict=True
                )
            ]
            for image in self.processor.post_process_grounding(outputs, sizes, labels, **settings)
        ]


def best_labels(scores: list[float], labels: list[str], top_k: int | None = None) -> list[dict[str, Any]]:
    """The labels with their scores, {"score", "label"}, best first; the first of equals first; `top_k` of them."""
    order = sorted(range(len(labels)), key=lambda i: -scores[i])[:top_k]
    return [{"score": scores[i], "label": labels[i]} for i in order]


def _has_area(box: dict[str, float]) -> bool:
    return box["xmax"] > box["xmin"] and box["ymax"] > box["ymin"]


def _joined(images: Any, given: dict[str, Any], is_single: bool) -> list[dict[str, Any]]:
    """A dict for each image, with its own part of what is given; a ValueError where there is not one part for each."""
    parts = {
        name: [value] if is_single else part_of_each(value, name, len(images))
        for name, value in given.items()
        if value is not None
    }
    return [{"image": image, **{name: values[i] for name, values in parts.items()}} for i, image in enumerate(images)]


def _text_settings(candidate_labels: Any, hypothesis_template: str | None) -> dict[str, Any]:
    """`candidate_labels` as a list, and `hypothesis_template`, those that are given; a ValueError for unfit ones."""
    found: dict[str, Any] = {}
    if candidate_labels is not None:
        if not isinstance(candidate_labels, Iterable):
            raise ValueError(f"candidate_labels is {candidate_labels!r}; it must be one text or a list of texts.")
        labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels)
        for i, label in enumerate(labels):
            if not isinstance(label, str) or not label.strip():
                raise ValueError(f"candidate label {i} is {label!r}; it must be a text that says something.")
            if label in labels[:i]:
                raise ValueError(f"candidate label {i}, {label[:60]!r}, is there twice; scores are shared among all.")
        if not labels:
            raise ValueError("candidate_labels is empty; give at least one text.")
        found["candidate_labels"] = labels
    if hypothesis_template is not None:
        if not isinstance(hypothesis_template, str) or hypothesis_template.count("{}") != 1:
            raise ValueError(f"hypothesis_template is {hypothesis_template!r}; it must hold {{}} once, for the label.")
        found["hypothesis_template"] = hypothesis_template
    return found


def _needed(candidate_labels: list[str] | None) -> list[str]:
    """The labels; a ValueError where there are none."""
    if candidate_labels is None:
        raise ValueError("no candidate_labels are given; give the texts to choose from, candidate_labels=[...].")
    return candidate_labels


__all__ = ["RegionClassificationPipeline", "RegionGroundingPipeline"]
