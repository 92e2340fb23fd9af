"""`pipeline("visual-question-answering", model=FOLDER, trust_remote_code=True)`: answers from pictures and plain text.

transformers 5 has no task of this name any more; config.json's `custom_pipelines` leads it here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import Pipeline

from .pipeline_inputs import (
    CHOSEN,
    SAVED,
    as_corners,
    check_regions,
    encoded_whole,
    image_settings,
    in_chunks,
    is_several,
    part_of_each,
    pictures_of,
    refuse_beside_dicts,
    whole_number,
)

ASK_KEYS = ("image", "question", "boxes")


class VisualQuestionAnsweringPipeline(Pipeline):
    """Answers questions about images, and about regions of them if boxes are given.

    The call forms are those of the pipeline of this name in transformers 4: `pipe(image=..., question=...)`, with lists
    in both places every question asked of every image; `pipe({"image": ..., "question": ...})`; and lists, datasets and
    generators of such dicts. An image is anything that the processor reads, or a web address.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "VisualQuestionAnsweringPipeline got no processor; give processor=RegionMedClipProcessor.from_"
                "pretrained(FOLDER), or build it by pipeline(model=FOLDER, trust_remote_code=True)."
            )

    def __call__(self, image: Any = None, question: Any = None, boxes: Any = None, **kwargs: Any) -> Any:
        """The best answers to each question, highest score first.

        Args:
            image: one image or a list; or one dict, a list, a dataset or a generator of dicts {"image", "question"}
                and, if wanted, "boxes".
            question: one question or a list; every question is asked of every image, the first of all images first.
            boxes: what is asked about, in original pixels of the image: its boxes (x0, y0, x1, y1); of several images
                one such list each, [] where an image has none.
            regions: "proposed" looks for regions by itself; not together with boxes.
            top_k: how many answers; 5 by default, and no more than the model knows.
            return_attention: whether to say what share each region had in the answer.
            window: which measured values are black to white, see the image processor; "saved" by default: as saved with
                it. None for 8-bit pictures where a window was saved.
            batch_size: questions in one forward pass; 1 by default. An image that several of them ask of is seen once.
            timeout: seconds to wait for an image from the web.

        Returns:
            for one question a list of {"score", "answer"}, the score in [0, 1]; for several a list of such lists; of a
            dataset or a generator an iterator of them. With `return_attention` {"answers", "regions"} in the place of
            each list: "regions" holds, in the order given or proposed, {"attention", "box"}, the attention summing to 1
            over them and the box {"xmin", "ymin", "xmax", "ymax"} in original pixels.

        Raises:
            ValueError: for a missing image or question, a question longer than the text tower takes, a box outside its
                image, boxes both given and to be proposed, a question or boxes beside dicts that have their own, an
                unknown key or `regions`.
            TypeError: an unknown setting.
        """
        if isinstance(image, (dict, Iterator)) or (is_several(image) and question is None):
            refuse_beside_dicts(question=question, boxes=boxes)
            asks, is_single = image, isinstance(image, dict)
        else:
            asks, is_single = _pair(image, question, boxes)
        batch_size = kwargs.pop("batch_size", self._batch_size)
        answers = self._answer([asks] if is_single else asks, batch_size, kwargs)
        if is_single:
            return next(answers)
        return list(answers) if isinstance(asks, (list, tuple)) else answers

    def _answer(
        self, asks: Iterable[dict[str, Any]], batch_size: int | None, settings: dict[str, Any]
    ) -> Iterator[Any]:
        """What each of the asks is answered, `batch_size` of them at a time."""
        call = super().__call__
        return in_chunks(asks, batch_size, lambda chunk: call(chunk, batch_size=1, **settings))

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        regions: str | None = None,
        return_attention: bool | None = None,
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_regions(regions)
        forward = {} if regions is None else {"regions": regions}
        told = {} if return_attention is None else {"return_attention": return_attention}
        show = told if top_k is None else {**told, "top_k": whole_number(top_k, "top_k")}
        return {**forward, **told, **image_settings(window, timeout)}, forward, show

    def preprocess(
        self,
        input_: tuple[dict[str, Any], ...],
        regions: str | None = None,
        return_attention: bool = False,
        window: Any = SAVED,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """The tensors of the model for some asks, each image once; with `return_attention` also `geometries`."""
        for ask in input_:
            _check_ask(ask, regions)
        pictures = pictures_of(self.processor, [ask["image"] for ask in input_], window, timeout)
        regions_of_asks = [ask.get("boxes") for ask in input_]
        given = {} if all(boxes is None for boxes in regions_of_asks) else {"boxes": regions_of_asks}
        text_model, questions = self.model.regionmed_clip.text_model, [ask["question"] for ask in input_]
        tensors = encoded_whole(self.processor, text_model, questions, "question")
        tensors |= dict(self.processor(images=pictures, **CHOSEN, **given))
        places = [id(ask["image"]) for ask in input_]
        seen_first = [places.index(place) for place in dict.fromkeys(places)]  # the row where each image comes first
        row_of = {places[first]: row for row, first in enumerate(seen_first)}
        tensors["pixel_values"] = tensors["pixel_values"][seen_first].to(self.dtype)
        tensors["image_index"] = torch.tensor([row_of[place] for place in places])
        if return_attention:
            tensors["geometries"] = self.processor.geometries([picture.size[::-1] for picture in pictures])
        return tensors

    def _forward(self, input_tensors: dict[str, Any], regions: str | None = None) -> dict[str, Any]:
        geometries = input_tensors.pop("geometries", None)
        output = self.model(**input_tensors, regions=regions)
        names = ("logits", "region_attention", "region_boxes", "region_mask")
        return {name: output.get(name) for name in names} | {"geometries": geometries}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5, return_attention: bool = False) -> list[Any]:
        """The answers of some asks, each as `__call__` gives it."""
        logits = model_outputs["logits"].float()
        scores, labels = logits.sigmoid().topk(min(top_k, logits.shape[-1]))
        names = self.model.config.id2label
        answers = [
            [{"score": score, "answer": names[label]} for score, label in zip(*row, strict=True)]
            for row in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        if not return_attention:
            return answers
        regions = [self._regions(model_outputs, row) for row in range(len(answers))]
        return [{"answers": first, "regions": second} for first, second in zip(answers, regions, strict=True)]

    @staticmethod
    def _regions(outputs: dict[str, Any], row: int) -> list[dict[str, Any]]:
        """The regions of one ask in original pixels, with the attention that each got."""
        if outputs["region_mask"] is None:
            return []
        mask = outputs["region_mask"][row]
        boxes = outputs["geometries"][row].frame_fractions_to_boxes(outputs["region_boxes"][row][mask])
        attention = outputs["region_attention"][row][mask].tolist()
        return [
            {"attention": share, "box": as_corners(box)} for share, box in zip(attention, boxes.tolist(), strict=True)
        ]


def _pair(image: Any, question: Any, boxes: Any) -> tuple[Any, bool]:
    """The asks of a call with named image and question, every question of every image; and whether it is one alone."""
    is_single = not is_several(image) and not isinstance(question, list)
    images = image if is_several(image) else [image]
    is_for_each = boxes is not None and is_several(image)
    boxes_of = part_of_each(boxes, "boxes", len(images)) if is_for_each else [boxes] * len(images)
    asks = [
        {"image": one, "question": asked, "boxes": its_boxes}
        for asked in (question if isinstance(question, list) else [question])
        for one, its_boxes in zip(images, boxes_of, strict=True)
    ]
    return (asks[0], True) if is_single else (asks, False)


def _check_ask(ask: Any, regions: str | None) -> None:
    """None; a ValueError where one ask lacks something or says something unknown."""
    if not isinstance(ask, dict) or not set(ask) <= set(ASK_KEYS):
        what = f"has the keys {sorted(ask)}" if isinstance(ask, dict) else f"is a {type(ask).__name__}"
        raise ValueError(f"what is asked {what}; it must be a dict with an image, a question and, if wanted, boxes.")
    if isinstance(ask.get("image"), dict):  # in a list or a dataset with a question for all of it
        refuse_beside_dicts(question=ask.get("question"), boxes=ask.get("boxes"))
    if ask.get("image") is None:
        raise ValueError(f"the question {str(ask.get('question'))[:60]!r} has no image; give image=...")
    if not isinstance(ask.get("question"), str) or not ask["question"].strip():
        raise ValueError(f"the question of an image is {ask.get('question')!r}; it must be a text that asks something.")
    if regions is not None and ask.get("boxes") is not None:
        raise ValueError(f"boxes are given and regions={regions!r} too; give the boxes, or let them be proposed.")


__all__ = ["VisualQuestionAnsweringPipeline"]
