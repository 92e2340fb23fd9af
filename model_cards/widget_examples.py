"""Examples for the card: drawn pictures with what this very model says of them, for the Hub's widget and the text.

The hosted widget runs no custom code, so that it shows what stands here. The pictures are taken by a fixed rule and
never by how well the model does on them: of each kind of phantom the first test drawing that shows a finding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.eval.prompts import normal_prompts, presence_prompts
from regionmed_clip.processing.corpus.captions import describe_region, study_phrase
from regionmed_clip.processing.corpus.phantoms.study import MODALITIES, draw_phantom
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord

SAMPLES_FOLDER = "samples"
TEMPLATE = "{}"  # for hypothesis_template: the candidate labels are whole sentences
TRUE_ANSWER = "true answer: "  # in the title of an example of a model that answers
SPLIT, SEED = "test", 0
MAX_TRIES = 200  # drawings in which every kind of phantom has come long before
NUM_DIGITS = 4


def widget_examples(model: Any, processor: Any, folder: str | Path) -> list[dict[str, Any]]:
    """The card's `widget` entries, a picture each, which are written to `folder`/samples as PNG of under 50 kB.

    Of an encoder an entry holds `candidate_labels` and as `output` the softmax over them, as the pipeline
    "zero-shot-image-classification" gives it with the hypothesis template "{}"; of a model that answers questions it
    holds as `text` a question about the picture, the next one for each, and as `output` the best answer with its score.

    Args:
        model: in evaluation mode, on any device.
        processor: of the model.
        folder: the flat folder; samples/ is made in it.
    """
    is_answering = isinstance(model, RegionMedClipForVisualQuestionAnswering)
    entries = []
    for number, record in enumerate(sample_records()):
        place = _write_picture(record, Path(folder))
        if is_answering:
            asked = record.qa[number % len(record.qa)]  # the first ones are of one kind
            said, shown = _answer(model, processor, record, asked.question), f", {TRUE_ANSWER}{asked.answer}"
        else:
            findings = dict.fromkeys(region.finding for region in record.regions)
            said, shown = _classify(model, processor, record), f": {', '.join(findings)}"
        entries.append({"src": place, **said, "example_title": f"Drawn {record.modality}{shown}"})
    return entries


def region_examples(model: Any, processor: Any) -> list[dict[str, Any]]:
    """What the encoder says of every annotated box of the pictures of `widget_examples`, in their order.

    Each is {"src", "box" (x0, y0, x1, y1 in pixels), "truth", "best", "score", "num_texts", "choices"}: the text that
    describes the box best of the `num_texts` descriptions that its kind of phantom can have, its share of their
    softmax, and as `choices` the true one with some wrong ones, to try it out with.
    """
    encoder = model.regionmed_clip if isinstance(model, RegionMedClipForVisualQuestionAnswering) else model
    examples = []
    for record in sample_records():
        texts = _descriptions(record)
        boxes = [[int(side) for side in region.box] for region in record.regions]
        inputs = processor(images=_picture(record), boxes=[boxes], region_text=texts, window=None)
        with torch.inference_mode():
            shares = encoder(**inputs.to(encoder.device)).logits_per_region[0].float().softmax(-1)
        for region, box, (score, best) in zip(record.regions, boxes, (row.max(dim=0) for row in shares), strict=True):
            told = {"truth": region.description, "best": texts[int(best)], "score": round(float(score), NUM_DIGITS)}
            told |= {"num_texts": len(texts), "choices": _choices(region.description, texts)}
            examples.append({"src": _place(record), "box": box, **told})
    return examples


@cache
def sample_records() -> tuple[StudyRecord, ...]:
    """The phantoms that the examples show, one of each kind, in the order of the kinds."""
    found: dict[str, StudyRecord] = {}
    for index in range(MAX_TRIES):
        record = draw_phantom(SEED, index, split=SPLIT)
        if record.regions:
            found.setdefault(record.modality, record)
        if len(found) == len(MODALITIES):
            break
    return tuple(found[modality.name] for modality in MODALITIES)


def _classify(model: Any, processor: Any, record: StudyRecord) -> dict[str, Any]:
    """`candidate_labels`, one sentence for each finding of its kind of phantom and one for none, and `output`."""
    modality = _modality_of(record)
    study = study_phrase(modality.name, modality.view, modality.anatomy)
    sentences = [presence_prompts(study, finding)[0] for finding in modality.findings] + [normal_prompts(study)[0]]
    labels = [sentence[:1].upper() + sentence[1:] for sentence in sentences]
    inputs = processor(images=_picture(record), text=labels, window=None)
    with torch.inference_mode():
        logits = model(**inputs.to(model.device)).logits_per_image[0].float()
    scores = logits.softmax(-1).tolist()
    ranked = sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
    output = [{"label": label, "score": round(score, NUM_DIGITS)} for score, label in ranked]
    return {"candidate_labels": ", ".join(labels), "output": output}


def _answer(model: Any, processor: Any, record: StudyRecord, question: str) -> dict[str, Any]:
    """`text`, the question, and `output`: the best answer."""
    inputs = processor(images=_picture(record), text=[question], window=None)
    with torch.inference_mode():
        scores = model(**inputs.to(model.device)).logits[0].float().sigmoid()
    best = int(scores.argmax())
    answer = {"answer": model.config.id2label[best], "score": round(float(scores[best]), NUM_DIGITS)}
    return {"text": question, "output": answer}


def _descriptions(record: StudyRecord) -> list[str]:
    """Every description that a region of this kind of phantom can have, each once."""
    nowhere = (0.0, 0.0, 1.0, 1.0)
    return list(
        dict.fromkeys(describe_region(RegionRecord(nowhere, **asdict(m))) for m in _modality_of(record).meanings)
    )


def _choices(truth: str, texts: Sequence[str]) -> list[str]:
    """The true description and three others, spread evenly over all, in the order of the alphabet."""
    others = [text for text in texts if text != truth]
    return sorted([truth, *others[:: -(-len(others) // 3)]])


def _modality_of(record: StudyRecord) -> Any:
    return next(modality for modality in MODALITIES if modality.name == record.modality)


def _place(record: StudyRecord) -> str:
    """The picture's path in the folder, which is its address in the card too."""
    return f"{SAMPLES_FOLDER}/{record.modality.lower().replace(' ', '_')}.png"


def _write_picture(record: StudyRecord, folder: Path) -> str:
    """The path within the folder under which the drawing's PNG now lies."""
    assert isinstance(record.image, bytes), "phantoms are drawn, not read"
    path = folder / _place(record)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(record.image)
    return _place(record)


def _picture(record: StudyRecord) -> Image.Image:
    assert isinstance(record.image, bytes), "phantoms are drawn, not read"
    return Image.open(io.BytesIO(record.image))
