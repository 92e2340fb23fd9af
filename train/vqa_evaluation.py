"""The figures of a run of train/finetune_vqa.py on the part that it has not seen, its controls in the same table."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.eval.tasks.leaks import check_leaks
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.runner import Result, RunContext, TaskOutcome, compare_outcomes, run_tasks
from regionmed_clip.eval.tasks.split_examples import write_examples
from regionmed_clip.eval.tasks.vqa_facts import AnswerFacts, Answering
from regionmed_clip.processing.corpus.data_spec import data_revision, hash_images
from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.question_parts import stream_part
from regionmed_clip.processing.corpus.training_images import FACTS_FILE as TRAINING_FACTS_FILE
from regionmed_clip.processing.corpus.training_images import IMAGES_FILE

from .arguments import Recipe
from .starts import START, load_start
from .vqa_recipe import QuestionEvaluation
from .vqa_training import TrainedAnswers, VqaRun

MAIN_NAME, START_NAME = "regionmed-clip", "encoder-alone"


@dataclass(frozen=True)
class VqaEvaluated:
    """The Results of a run and its controls, the examples they are of, the outcomes, the run's first, and its model."""

    results: list[Result]
    examples: Dataset
    outcomes: list[TaskOutcome]
    answering: Answering

    def shown(self) -> dict[str, Any]:
        """What a report shows of the evaluation."""
        names = ("results", "examples", "outcomes", "answering")
        return {name: getattr(self, name) for name in names}

    @property
    def whole(self) -> list[Result]:
        """The Results of the whole part, without those of its strata."""
        return [result for result in self.results if result.source is None and result.stratum is None]


def facts_of(run: VqaRun, trained: TrainedAnswers) -> AnswerFacts:
    """What the folder of a finished run or control says beside its weights."""
    recipe = trained.recipe
    return AnswerFacts(
        has_images=recipe.has_images,
        is_derived=recipe.derived_questions,
        is_balanced=recipe.balance_questions,
        **run.majority(),
    )


def pack_models(run: VqaRun, stage: Callable[..., Path], hardware: str, results: list[Result]) -> None:
    """Writes final/ of the run, and controls/NAME/final of its controls, with what they say of their answers.

    Args:
        stage: `stage_flat_folder`.
        hardware: one line on the machine that trained.
        results: for the card of the run.
    """
    for trained in (run.main, *run.controls.values()):
        if trained is not run.main:  # a leak check looks for them beside final/
            for name in (IMAGES_FILE, TRAINING_FACTS_FILE):
                shutil.copyfile(run.output_dir / name, trained.folder / name)
        about = {"facts": run.facts(trained, hardware), "training_data": run.training_data()}
        own = results if trained is run.main else []
        facts_of(run, trained).write(
            stage(trained.model, run.processor, trained.folder / "final", results=own, **about)
        )


def evaluate_vqa(run: VqaRun, hardware: str) -> VqaEvaluated:
    """The figures of the run, of its controls and of the encoder that it started from, and their paired differences.

    Images of the part that were trained on refuse nothing here, after a training: every figure is marked.
    """
    recipe, device = run.main.recipe, run.accelerator.device
    settings = recipe.evaluation
    examples = keep_part(run.cache / f"{settings.split}-part.arrow", recipe.data or "", settings)
    context = RunContext(
        data_revision=data_revision(recipe.data or ""),
        model_revision="",
        split=settings.split,
        split_sha256=hash_images(zip(examples["image_id"], examples["sha256"])),
        seed=recipe.seed,
        hardware=hardware,
        command=run.command_line.text,
        protocol=check_leaks(run.output_dir, part_of_examples(settings.split, examples)).protocol,
    )
    outcomes: list[TaskOutcome] = []
    results: list[Result] = []
    for name, encoder, answering in _models(run):
        own = replace(context, model_revision=weights_revision(encoder if answering is None else answering.model))
        outcome = run_tasks(
            encoder,
            run.processor,
            {settings.split: examples},
            model_name=name,
            context=own,
            tasks=["vqa"],
            batch_size=settings.batch_size,
            device=device,
            is_brief=name != MAIN_NAME,
            answering=answering,
            question_choice=facts_of(run, run.main).choice,
        )
        results += outcome.results
        if name not in (MAIN_NAME, START_NAME):
            results += compare_outcomes(outcomes[0], outcome)
        outcomes.append(outcome)
    return VqaEvaluated(results, examples, outcomes, Answering(run.main.model, facts_of(run, run.main)))


def _models(run: VqaRun) -> Iterator[tuple[str, RegionMedClipModel, Answering | None]]:
    """(name, encoder, what answers) of the run, of its controls, and of its start."""
    for name, trained in {MAIN_NAME: run.main, **run.controls}.items():
        answering = Answering(trained.model, facts_of(run, trained))
        yield name.replace("_", "-"), trained.model.regionmed_clip, answering
    recipe = run.main.recipe
    start = load_start(Recipe(name=recipe.name, seed=recipe.seed, model={START: recipe.start}))
    yield START_NAME, start.eval().to(run.accelerator.device), None


def keep_part(path: Path, data: str, settings: QuestionEvaluation) -> Dataset:
    """The examples of a part in a memory-mapped file, so that each is drawn or read once.

    Args:
        settings: of more images than it takes, those with the smallest hash of their names.
    """
    write_examples(path, stream_part(data, settings.split))
    examples = Dataset.from_file(str(path))
    if settings.max_images is None or len(examples) <= settings.max_images:
        return examples
    tickets = [hashlib.blake2b(name.encode()).digest() for name in examples["image_id"]]
    chosen = sorted(range(len(tickets)), key=tickets.__getitem__)[: settings.max_images]
    return examples.select(sorted(chosen))
