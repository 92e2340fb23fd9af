"""An evaluation: several models on several data by the same tasks, compared pairwise, written with their report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from regionmed_clip.eval.baselines.image_text_model import ImageTextModel, load_all
from regionmed_clip.eval.baselines.model_entries import ModelEntry
from regionmed_clip.eval.html_report import write_page
from regionmed_clip.eval.model_report import ModelReport
from regionmed_clip.eval.report import write_report
from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.saved_models import answers_questions
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.embedding_cache import EmbeddingCache
from regionmed_clip.eval.tasks.held_out_examples import HELD_OUT_SPLIT, HeldOutExamples
from regionmed_clip.eval.tasks.leaks import LeakGuard
from regionmed_clip.eval.tasks.measured import RunContext
from regionmed_clip.eval.tasks.registry import (
    READING_TASKS,
    TAUGHT_TASKS,
    TRAINED_REGION_TASKS,
    TUNED_TASKS,
    check_tasks,
)
from regionmed_clip.eval.tasks.runner import TaskOutcome, compare_outcomes, run_colour_probe, run_tasks
from regionmed_clip.eval.tasks.sharing import Share, join_launch
from regionmed_clip.eval.tasks.split_examples import NUM_SMOKE_IMAGES, TRAINING_SPLIT, SplitExamples
from regionmed_clip.eval.tasks.vqa_facts import AnswerFacts
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice
from regionmed_clip.processing.corpus.data_spec import data_revision, parse_data_spec


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command line asks for.

    Attributes:
        models: the first is compared with each of the others; baselines of the first have its folder.
        data: data specs, each evaluated on its own.
        cache: folder of kept embeddings; None: none are kept.
        device: of torch; "auto": what Accelerate finds.
        leaks: what happens where a model was trained on what is tested, or a threshold chosen on it: "refuse", "mark".
        training_images: folder of a model -> the list of its training images, where that is not where its run left it.
        is_smoke: take a few images of every split.
        command: for the record.
    """

    models: tuple[ModelEntry, ...]
    data: tuple[str, ...]
    tasks: tuple[str, ...]
    output: Path | str
    command: str
    split: str = "test"
    batch_size: int = 64
    device: str = "auto"
    seed: int = 0
    cache: Path | str | None = None
    leaks: str = "refuse"
    training_images: Mapping[Path, Path] = field(default_factory=dict)
    has_colour_probe: bool = False
    is_smoke: bool = False

    def splits_beside(self, examples: SplitExamples | HeldOutExamples) -> list[str]:
        """The splits beside the one under test that the tasks choose thresholds on or learn from."""
        wanted = [examples.tuning_split] if TUNED_TASKS & set(self.tasks) else []
        wanted += [TRAINING_SPLIT] if TAUGHT_TASKS & set(self.tasks) or self.has_colour_probe else []
        return [name for name in wanted if name in examples and name != self.split]

    def question_choice(self) -> QuestionChoice:
        """Which questions all models are asked: those by which the first of them that answers was trained."""
        taught = (entry.folder for entry in self.models if answers_questions(entry.folder))
        return next((AnswerFacts.read(folder).choice for folder in taught), QuestionChoice())

    def tasks_of(self, entry: ModelEntry) -> tuple[str, ...]:
        """The tasks that tell something of the model, or, of a reading of the first one, something that is new."""
        first = self.models[0]
        is_reading = entry is not first and (entry.folder, entry.geometry) == (first.folder, first.geometry)
        wanted = [name for name in self.tasks if name in READING_TASKS] if is_reading else self.tasks
        return tuple(name for name in wanted if entry.has_trained_regions or name not in TRAINED_REGION_TASKS)


class Evaluation:
    """Runs what the settings ask for; every process of a launch makes one and calls `run`.

    Raises:
        ValueError: an unknown task, a bad data spec or one given twice, a batch size below 1, a negative seed, an
            output folder that cannot be written to, a device that is not there.
    """

    def __init__(self, settings: Settings):
        check_tasks(settings.tasks)
        if settings.batch_size < 1:
            raise ValueError(f"--batch-size is {settings.batch_size}; a pass needs at least 1 image. Give 64.")
        if settings.seed < 0:
            raise ValueError(f"--seed is {settings.seed}; a seed is a whole number from 0. Leave it out for 0.")
        first = settings.models[0]
        if not settings.tasks_of(first):
            raise ValueError(
                f"--tasks {','.join(settings.tasks)} tell nothing of {first.name!r}, whose regions are read without "
                f"training ({first.reading}). Choose other tasks, or name a model with trained regions first."
            )
        for data in settings.data:
            parse_data_spec(data)
        repeated = sorted({data for data in settings.data if settings.data.count(data) > 1})
        if repeated:
            raise ValueError(f"--data names {', '.join(repeated)} twice; each would be measured twice. Name it once.")
        _check_place(Path(settings.output))
        self.settings = settings
        self.share, self.device = _join(settings)
        if not (self.share.is_main and sys.stderr.isatty()):
            disable_progress_bar()  # that of loading weights, which our own bars leave to the terminal too
        self.written: list[str] = []
        self._cache = None if settings.cache is None else EmbeddingCache(settings.cache)
        self._results: list[Result] = []

    def run(self) -> list[Result]:
        """The Results of all models and differences; they are also in `output`, and were after every model."""
        for place, data in enumerate(self.settings.data):
            with tempfile.TemporaryDirectory(prefix="regionmed-eval-") as own:
                folder = Path(self.share.from_main(lambda own=own: own))
                self._evaluate_data(data, folder, f"data_{place + 1}/" if len(self.settings.data) > 1 else "")
                self.share.from_main(lambda: None)  # all are done with the folder
        return self._results

    def _evaluate_data(self, data: str, folder: Path, place: str) -> None:
        """None; every model on one data spec, whose files go below `place` in the output."""
        settings = self.settings
        options: dict[str, Any] = {"share": self.share, "is_smoke": settings.is_smoke}
        is_held_out = settings.split == HELD_OUT_SPLIT
        examples = (
            HeldOutExamples(data, folder, **options)
            if is_held_out
            else SplitExamples(data, settings.split, folder, **options)
        )
        context = RunContext(
            data_revision=data_revision(data),
            model_revision="",
            split=settings.split,
            split_sha256=examples.sha256(),
            seed=settings.seed,
            hardware=describe_hardware(),
            command=settings.command,
            protocol={"smoke": f"the first {NUM_SMOKE_IMAGES} images"} if settings.is_smoke else {},
        )
        protocols = self._check_leaks(examples)
        page = _Page(Path(settings.output), place, is_alone=len(settings.models) == 1)
        first: TaskOutcome | None = None
        told = [entry for entry in settings.models if settings.tasks_of(entry)]
        for entry in settings.models:
            if entry not in told:
                self._tell(
                    f"{entry.name}: none of {', '.join(settings.tasks)} tells anything new of it; it is left out"
                )
        for model in load_all(told, self.device):
            self._tell(f"{model.name} on {data}, {settings.split}: {', '.join(settings.tasks_of(model.entry))}")
            said = {**context.protocol, **model.entry.protocol, **protocols[model.name]}
            own = replace(context, model_revision=model.revision, protocol=said)
            outcome = self._measure(model, examples, own)
            found = list(outcome.results)
            if first is None:
                first = outcome
                if settings.has_colour_probe and TRAINING_SPLIT in examples:
                    probe = replace(context, model_revision="fitted-on-the-spot")
                    found += run_colour_probe(
                        model.processor, examples[TRAINING_SPLIT], outcome.embedded, context=probe
                    )
            else:
                found += [mark_difference(one, first, outcome) for one in compare_outcomes(first, outcome)]
            self._results += found
            if self.share.is_main:
                self._write_results()
                page.add(model, examples[settings.split], outcome, found, settings.question_choice())
                self.written = list(dict.fromkeys([*self.written, page.write()]))

    def _check_leaks(self, examples: SplitExamples | HeldOutExamples) -> dict[str, dict[str, Any]]:
        """By model what protocols say of leaks into the split under test; ValueError where one is refused."""
        settings = self.settings
        guard = LeakGuard(examples[settings.split], settings.leaks)
        beside = {name: examples[name] for name in settings.splits_beside(examples)}  # opened by all processes

        def check() -> dict[str, dict[str, Any]]:
            checks = {
                entry.name: guard.check(entry.name, entry.folder, settings.training_images.get(entry.folder))
                for entry in settings.models
            }
            for name, found in checks.items():
                self._tell(found.line(name))
            of_splits = guard.check_splits(beside)
            if "split_leaks" in of_splits:
                self._tell(of_splits["split_leaks"])
            return {name: {**found.protocol, **of_splits} for name, found in checks.items()}

        return self.share.from_main(check)

    def _measure(
        self, model: ImageTextModel, examples: SplitExamples | HeldOutExamples, context: RunContext
    ) -> TaskOutcome:
        """The outcome of the model's tasks; texts that its tokenizer cuts are counted in every protocol."""
        outcome = run_tasks(
            model.model,
            model.processor,
            examples,
            model_name=model.name,
            context=context,
            tasks=self.settings.tasks_of(model.entry),
            batch_size=self.settings.batch_size,
            device=self.device,
            region_reading=model.region_reading,
            share=self.share,
            cache=self._cache,
            answering=model.answering,
            question_choice=self.settings.question_choice(),
        )
        num_cut = model.count_truncated([*outcome.embedded.captions, *outcome.embedded.region_texts])
        return outcome.add_protocol({"texts_truncated": num_cut}) if num_cut else outcome

    def _write_results(self) -> None:
        """None; results so far of all data as JSON and Markdown."""
        output = Path(self.settings.output)
        write_results(output / "results.json", self._results)
        (output / "results.md").write_text(format_table(self._results), encoding="utf-8")
        self.written = list(dict.fromkeys([*self.written, "results.json", "results.md"]))

    def _tell(self, text: str) -> None:
        """None; a line of progress from the main process."""
        if self.share.is_main:
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def _check_place(output: Path) -> None:
    """None; ValueError where results could not be written to the folder, before minutes went into them."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"--output {str(output)!r} cannot be written to ({error}); name another folder.") from error


def _join(settings: Settings) -> tuple[Share, torch.device]:
    """As `join_launch`; ValueError where the device is none, or not there."""
    try:
        share, device = join_launch(settings.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {settings.device!r} cannot be used: {reason} Give cpu, or leave it out.") from error
    return share, device


def mark_difference(result: Result, first: TaskOutcome, second: TaskOutcome) -> Result:
    """The difference of two models with what either one's own figures are marked by: leaks, unknown training data."""
    marks = {}
    for key in ("leaks", "training_data"):
        told = {one.model_name: one.context.protocol.get(key) for one in (first, second)}
        texts = [f"{name}: {text}" for name, text in told.items() if text]
        if texts and key not in result.protocol:
            marks[key] = "; ".join(texts)
    return replace(result, protocol={**result.protocol, **marks}) if marks else result


class _Page:
    """The report of one data spec: a folder of pictures for each model, and one page of all."""

    def __init__(self, output: Path, place: str, *, is_alone: bool):
        self._output, self._place, self._is_alone = output, place, is_alone
        self._results: list[Result] = []
        self._reports: dict[str, ModelReport] = {}
        self._details: dict[str, Mapping[str, Mapping[str, Any]]] = {}

    def add(
        self,
        model: ImageTextModel,
        examples: Any,
        outcome: TaskOutcome,
        results: list[Result],
        question_choice: QuestionChoice,
    ) -> None:
        """None; takes in what was measured of a model and draws its pictures."""
        number = len(self._reports)
        name = "report" if self._is_alone else f"report_{number}"
        self._results += results
        self._details[model.name] = outcome.details
        self._reports[model.name] = write_report(
            self._output / self._place / name,
            metrics_rows=[],
            results=self._results,
            model=model.model,
            processor=model.processor,
            examples=examples,
            embedded=outcome.embedded,
            answering=model.answering if "vqa" in outcome.details else None,
            question_choice=question_choice,
        )

    def write(self) -> str:
        """The path of the page below the output, written whole."""
        name = f"{self._place}report.html"
        write_page(self._output / name, self._results, reports=self._reports, details=self._details)
        return name
