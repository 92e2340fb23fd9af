"""The data of a fine-tuning run: parts that share no image and no patient, the vocabulary, the questions as numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.vqa_facts import question_hash
from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.corpus.data_licences import data_licences
from regionmed_clip.processing.corpus.data_spec import DataSpec, data_revision, parse_data_spec
from regionmed_clip.processing.corpus.fingerprints import Part
from regionmed_clip.processing.corpus.question_parts import parts_of_rows, plan_of_data
from regionmed_clip.processing.corpus.training_images import (
    FACTS_FILE,
    IMAGES_FILE,
    Block,
    find_training_images,
    read_blocks,
    write_training_images,
)
from regionmed_clip.processing.corpus.visual_questions import (
    VisualQuestion,
    balance_questions,
    majority_answers,
    most_frequent,
)
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .question_set import NO_ANSWER, QuestionSet
from .question_store import QuestionStore, prepare_questions
from .vqa_recipe import VqaRecipe
from .whole_files import write_whole

USED_PARTS = ("train", "validation")  # of a test part nothing is read here
ByRow = list[tuple[int, list[VisualQuestion]]]


@dataclass(frozen=True)
class PartOfStore:
    """A part of the data: rows of the store, and the questions of each image as they are used."""

    rows: list[int]
    by_row: ByRow

    @property
    def questions(self) -> list[VisualQuestion]:
        """All questions, in the order of the images."""
        return [question for _, questions in self.by_row for question in questions]


@dataclass(frozen=True)
class VqaData:
    """Everything that training reads.

    `asked` are the training questions, whether or not their answer is in the vocabulary; `counts` is for the log.
    """

    vocabulary: AnswerVocabulary
    train: QuestionSet
    validation: QuestionSet
    asked: list[VisualQuestion]
    counts: dict[str, int]


def prepare_vqa_data(
    recipe: VqaRecipe, cache: Path, image_processor: RegionMedClipImageProcessor
) -> dict[str, list[Path]]:
    """The prepared folders by stored split, written where they are missing; for the main process first."""
    cache.mkdir(parents=True, exist_ok=True)
    folders: dict[str, list[Path]] = {}
    for part in _terms(recipe):
        for split, shares in plan_of_data(part).items():
            if any(name in USED_PARTS for name in shares):
                workers, derived = recipe.preparation_workers, recipe.derived_questions
                folder = prepare_questions(part, split, cache, image_processor, workers, derived=derived)
                folders.setdefault(split, []).append(folder)
    return folders


def open_vqa_data(recipe: VqaRecipe, cache: Path, processor: RegionMedClipProcessor) -> VqaData:
    """The data of a recipe, whose folders have been prepared."""
    parts = _open_parts(recipe, cache, processor.image_processor)
    store, train = parts["train"]
    validation_store, validation = parts["validation"]
    limits = recipe.answers
    vocabulary = AnswerVocabulary.from_questions(train.questions, limits.min_count, limits.max_answers)
    known = [(row, [q for q in questions if q.answer in vocabulary]) for row, questions in train.by_row]
    train_set = QuestionSet(store, known, vocabulary, processor)
    some = _first_by_hash(validation.by_row, recipe.validation.max_images, recipe.seed)
    validation_set = QuestionSet(validation_store, some, vocabulary, processor)
    counts = {
        "answers": len(vocabulary),
        "training_images": len(train_set),
        "training_questions": len(train_set.questions),
        "left_out_answer_unknown": len(train.questions) - len(train_set.questions),
        "cut_question_texts": train_set.encoded.num_cut + validation_set.encoded.num_cut,
        "validation_images": len(validation_set),
        "validation_questions": len(validation_set.questions),
        "validation_answers_unknown": int((validation_set.answers == NO_ANSWER).sum()),
    }
    return VqaData(vocabulary, train_set, validation_set, train.questions, counts)


def _terms(recipe: VqaRecipe) -> list[DataSpec]:
    """The parts of the recipe's data; ValueError for weights, which would mean nothing here."""
    terms = parse_data_spec(recipe.data or "").terms()
    for part, weight in terms:
        if weight != 1:
            raise ValueError(
                f"recipe {recipe.name!r}: data gives {str(part)!r} the weight {weight:g}; questions are shown as often "
                "as they are there, so leave the weights out."
            )
    return [part for part, _ in terms]


def _open_parts(
    recipe: VqaRecipe, cache: Path, image_processor: RegionMedClipImageProcessor
) -> dict[str, tuple[QuestionStore, PartOfStore]]:
    """Part -> (the store of its stored split, its rows with their questions)."""
    found: dict[str, tuple[QuestionStore, PartOfStore]] = {}
    shares_of_split: dict[str, Mapping[str, float]] = {}
    for part in _terms(recipe):
        for split, shares in plan_of_data(part).items():
            if shares_of_split.setdefault(split, shares) != shares:
                raise ValueError(
                    f"recipe {recipe.name!r}: of the parts of {recipe.data} some have splits of their own and others "
                    "none; give data that agree in their splits."
                )
    width, _ = image_processor.frame_size
    for split, folders in prepare_vqa_data(recipe, cache, image_processor).items():
        store = QuestionStore(folders, width)
        images = Part(split, store.image_ids, store.fingerprints)
        names = parts_of_rows(images, shares_of_split[split])
        for name in USED_PARTS:
            rows = [row for row, part in enumerate(names) if part == name]
            if rows:
                found[name] = store, PartOfStore(rows, _used_questions(store, rows, recipe))
    for name in USED_PARTS:
        if name not in found:
            raise ValueError(f"recipe {recipe.name!r}: {recipe.data} leaves the part {name!r} empty; give more data.")
    return found


def _used_questions(store: QuestionStore, rows: Sequence[int], recipe: VqaRecipe) -> ByRow:
    """The questions of the images at `rows`, balanced over them where the recipe says so."""
    if not recipe.balance_questions:
        return [(row, store.questions[row]) for row in rows]
    kept = set(balance_questions(question for row in rows for question in store.questions[row]))
    return [(row, [question for question in store.questions[row] if question in kept]) for row in rows]


def _first_by_hash(by_row: ByRow, most: int | None, seed: int) -> ByRow:
    """At most so many images with a question, chosen by chance, in their order."""
    asked = [(row, questions) for row, questions in by_row if questions]
    if most is None or len(asked) <= most:
        return asked
    chosen = np.sort(np.random.default_rng(seed).permutation(len(asked))[:most])
    return [asked[index] for index in chosen]


def write_vqa_training_data(recipe: VqaRecipe, data: VqaData, output_dir: Path) -> dict[str, Any]:
    """Writes training_images.parquet and training_data.json; gives what the latter says.

    The images of the encoder's own training count too, where its files tell them.
    """
    start = find_training_images(recipe.start or "")
    if recipe.encoder == "random":
        start = None

    def blocks() -> Iterator[Block]:
        yield from data.train.store.blocks_of_fingerprints(data.train.rows.tolist())
        if start is not None and start.images is not None:
            yield from read_blocks(start.images)

    parts = [
        {"kind": part.kind, "revision": data_revision(part), "split": "train", "sources": data_licences(part)}
        for part in _terms(recipe)
    ]
    facts: dict[str, Any] = {
        "format": 1,
        "data": [{**part, "num_images": len(data.train)} for part in parts],
        "start": None,
        "images": write_training_images(output_dir / IMAGES_FILE, blocks()),
    }
    if start is not None:
        name = Path(recipe.start or "").name
        facts["start"] = {"name": name, "unknown": f"start {name}: {start.unknown}" if start.unknown else ""}
        facts["start"] |= {"data": start.facts.get("data", [])}
    write_whole(output_dir / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    return facts


def majority_of(questions: Iterable[VisualQuestion]) -> dict[str, dict[str, str]]:
    """The most frequent answer of the training questions, `by_question` (`question_hash`) and `by_kind`.

    The evaluation compares with what these alone would score.
    """
    asked = list(questions)
    by_question = [(question_hash(text), answer) for text, answer in majority_answers(asked).items()]
    by_kind: dict[str, Counter[str]] = {}
    for question in asked:
        by_kind.setdefault(question.kind, Counter())[question.answer] += 1
    return {
        "by_question": dict(sorted(by_question)),
        "by_kind": {kind: most_frequent(counts)[0] for kind, counts in sorted(by_kind.items())},
    }
