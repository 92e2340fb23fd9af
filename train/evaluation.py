"""Figures of a trained run on its held-out split: the model, plain-clip, and the colour-and-size control."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from datasets import IterableDataset

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.runner import (
    Result,
    RunContext,
    compare_outcomes,
    run_colour_probe,
    run_plain_clip,
    run_tasks,
)
from regionmed_clip.processing.corpus.data_spec import data_revision, split_sha256, stream_examples

from .pretraining import TRAINING_SPLIT, TrainedRun


@dataclass(frozen=True)
class Evaluated:
    """The figures of a run, and what report and card need beside them."""

    results: list[Result]
    examples: IterableDataset  # of the evaluated split, iterable any number of times
    embedded: EmbeddedSplit


def evaluate_run(run: TrainedRun, hardware: str) -> Evaluated:
    """Figures of the trained models on the recipe's held-out split, on the main process alone."""
    recipe, settings = run.command_line.recipe, run.command_line.recipe.evaluation
    examples = stream_examples(recipe.data, settings.split)
    context = RunContext(
        data_revision=data_revision(recipe.data),
        model_revision=weights_revision(run.model),
        split=settings.split,
        split_sha256=split_sha256(recipe.data, settings.split),
        seed=recipe.seed,
        hardware=hardware,
        command=run.command_line.text,
    )
    options = {"tasks": settings.tasks, "batch_size": settings.batch_size, "device": run.accelerator.device}
    by_split = {settings.split: examples}
    outcome = run_tasks(run.model, run.processor, by_split, model_name="regionmed-clip", context=context, **options)
    results = list(outcome.results)
    if run.baseline is not None:
        plain = run_plain_clip(run.baseline, run.processor, by_split, context=context, **options)
        results += plain.results + compare_outcomes(outcome, plain)
    if "region" in settings.tasks:
        training_examples = stream_examples(recipe.data, TRAINING_SPLIT)
        results += run_colour_probe(run.processor, training_examples, outcome.embedded, context=context)
    return Evaluated(results, examples, outcome.embedded)


def weights_revision(model: RegionMedClipModel) -> str:
    """First 12 hex digits of the SHA-256 over the names, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
