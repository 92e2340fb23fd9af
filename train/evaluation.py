"""Figures of a trained run on its held-out split: the model, plain-clip, and the colour-and-size control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.leaks import check_leaks
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.runner import (
    Result,
    RunContext,
    compare_outcomes,
    run_colour_probe,
    run_plain_clip,
    run_tasks,
)
from regionmed_clip.eval.tasks.split_examples import write_examples
from regionmed_clip.processing.corpus.data_spec import data_revision, hash_images, stream_examples
from regionmed_clip.processing.corpus.fingerprints import part_of_examples

from .pretraining import TrainedRun


@dataclass(frozen=True)
class Evaluated:
    """The figures of a run, and what report and card need beside them."""

    results: list[Result]
    examples: Dataset  # of the evaluated split, images still encoded
    embedded: EmbeddedSplit
    text_origin: str

    def shown(self) -> dict[str, Any]:
        """What a report shows of the evaluation."""
        return {"results": self.results, "examples": self.examples, "embedded": self.embedded}


def evaluate_run(run: TrainedRun, hardware: str) -> Evaluated:
    """The main figures of the trained models on the recipe's held-out split, on the main process alone.

    Images of the split that were trained on refuse nothing here, after a training: every figure is marked.
    """
    recipe, settings = run.command_line.recipe, run.command_line.recipe.evaluation
    examples = keep_examples(run.cache / f"{settings.split}.arrow", recipe.data, settings.split)
    context = RunContext(
        data_revision=data_revision(recipe.data),
        model_revision=weights_revision(run.model),
        split=settings.split,
        split_sha256=hash_images(zip(examples["image_id"], examples["sha256"])),
        seed=recipe.seed,
        hardware=hardware,
        command=run.command_line.text,
        protocol=check_leaks(run.output_dir, part_of_examples(settings.split, examples)).protocol,
    )
    options = {"tasks": settings.tasks, "batch_size": settings.batch_size, "device": run.accelerator.device}
    options["is_brief"] = True  # `regionmed-eval` takes its time
    by_split = {settings.split: examples}
    outcome = run_tasks(run.model, run.processor, by_split, model_name="regionmed-clip", context=context, **options)
    results = list(outcome.results)
    if run.baseline is not None:
        plain_context = replace(context, model_revision=weights_revision(run.baseline))
        plain = run_plain_clip(run.baseline, run.processor, by_split, context=plain_context, **options)
        results += plain.results + compare_outcomes(outcome, plain)
    if "region" in settings.tasks:
        probe_context = replace(context, model_revision="fitted-on-the-spot")
        results += run_colour_probe(run.processor, run.store.examples(), outcome.embedded, context=probe_context)
    return Evaluated(results, examples, outcome.embedded, _text_origin(examples))


def _text_origin(examples: Dataset) -> str:
    """Who wrote the texts of the split, in words for the card."""
    origins = set(examples["text_origin"])
    if origins == {"template"}:
        return "texts by template from structured annotations"
    return "captions as the source gives them" + (", others by template from labels" if "template" in origins else "")


def keep_examples(path: Path, data: str, split: str) -> Dataset:
    """The examples of a split in a memory-mapped Arrow file at `path`, so that each is drawn or read only once."""
    write_examples(path, stream_examples(data, split, decode_images=False))
    return Dataset.from_file(str(path))
