"""Two parts of hand-written questions about four tiny images, and a tiny encoder saved as a start for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from tiny_models import tiny_config

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.corpus.fingerprints import TYPE as FINGERPRINT_TYPE
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.question_set import QuestionSet
from regionmed_clip.train.question_store import QUESTION_FEATURES, QuestionStore
from regionmed_clip.train.tokenizer import train_tokenizer

FRAME_PX = 48
LEFT, RIGHT, NOWHERE = [0.0, 0.25, 0.5, 0.75], [0.5, 0.25, 1.0, 0.75], [1.0, 0.5, 1.0, 0.5]
SIDE, BRIGHT, COUNT = "which side is bright?", "is it bright?", "how many regions?"
IMAGES = {  # name: boxes, and (question, answer, kind, marked)
    "a": (
        [LEFT, RIGHT],
        [(SIDE, "left", "region-side", 0), (SIDE, "right", "region-side", 1), (COUNT, "2", "open", -1)],
    ),
    "b": ([LEFT], [(BRIGHT, "yes", "closed-presence", -1)]),
    "c": ([], []),
    "d": ([RIGHT, NOWHERE], [(BRIGHT, "no", "closed-presence", -1), (SIDE, "behind", "region-side", 1)]),
}
VOCABULARY = AnswerVocabulary(("yes", "no", "left", "right", "2"))


def write_store(folder: Path) -> QuestionStore:
    """The store of the four images; the pixels of each are its place among them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(features=QUESTION_FEATURES, path=str(folder / "part-00000-of-00001.arrow")) as writer:
        for place, (name, (boxes, questions)) in enumerate(IMAGES.items()):
            keys = ("question", "answer", "kind", "marked")
            row = {"image_id": name, "source": "by hand", "patient_id": None, "boxes": boxes}
            row["frame"] = np.full((3, FRAME_PX, FRAME_PX), place, dtype=np.uint8).tobytes()
            row["questions"] = [dict(zip(keys, question)) for question in questions]
            row["fingerprint"] = np.zeros(1, dtype=FINGERPRINT_TYPE).tobytes()
            writer.write(row)
        writer.finalize()
    return QuestionStore([folder], FRAME_PX)


def tiny_processor() -> RegionMedClipProcessor:
    size = {"height": FRAME_PX, "width": FRAME_PX}
    tokenizer = train_tokenizer([SIDE, BRIGHT, COUNT], vocab_size=300, max_length=24)
    return RegionMedClipProcessor(RegionMedClipImageProcessor(size=size, patch_size=12), tokenizer)


def question_set(store: QuestionStore, processor: RegionMedClipProcessor) -> QuestionSet:
    return QuestionSet(store, list(enumerate(store.questions)), VOCABULARY, processor)


def save_start(folder: Path, processor: RegionMedClipProcessor) -> Path:
    """The folder of a tiny encoder that knows the processor's tokenizer."""
    tokenizer = processor.tokenizer
    text = {**tiny_config().text_config.to_dict(), "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    RegionMedClipModel(tiny_config(text_config=text)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def asked(question: str, answer: str, kind: str = "open", image_id: str = "x") -> VisualQuestion:
    return VisualQuestion(image_id, question, answer, kind)
