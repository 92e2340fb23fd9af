"""Robustness: what careless boxes and worse images do to embeddings, and to what regions are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import ComputedRows, EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import batched, embed_batch, embedding_bar
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped
from regionmed_clip.eval.tasks.perturbations import PERTURBATIONS, name_hash, perturb_all
from regionmed_clip.eval.tasks.region import region_text_hits
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.processing.corpus.box_noise import jitter_example

JITTER_PERCENTS = (10, 20)  # of a box's sides, by which each of its edges moves at most
MAX_PERTURBED_IMAGES = 300


@dataclass(frozen=True)
class PerturbedImages:
    """Some images of a split, n of them with m regions, embedded under one perturbation.

    Attributes:
        images, regions: (n,), (m,) int64 rows in the split. image_embeds: (n, D); region_embeds: (m, D).
    """

    images: np.ndarray
    regions: np.ndarray
    image_embeds: np.ndarray
    region_embeds: np.ndarray


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of jittered boxes on all regions and, unless brief, of worse images on MAX_PERTURBED_IMAGES of them.

    `region_jitter_cosine@PERCENT` and `image_cosine_KIND@STRENGTH`: mean cosine of an embedding with its disturbed one.
    `region_to_text_accuracy_jitter@PERCENT`: of jittered boxes.
    `region_to_text_accuracy_drop_KIND@STRENGTH`, of worse images and of jitter: how much of `region_to_text_accuracy`
    is lost, region by region; lower is better. Patients are resampled whole.
    """
    moved = embed_jittered(inputs) if inputs.embedded.num_regions else {}
    measured = _skip_cropped(inputs.embedded, moved)
    jittered = {} if measured else {percent: split.region_embeds for percent, split in moved.items()}
    measured += measure_jitter(inputs.embedded, jittered, seed=inputs.seed)
    if inputs.is_brief:
        return TaskFindings(measured=measured)
    measured += measure_jittered_accuracy(inputs.embedded, jittered, seed=inputs.seed)
    measured += measure_perturbed(inputs.embedded, embed_perturbed(inputs), seed=inputs.seed)
    return TaskFindings(measured=measured, details={"robustness_curves": list_curves(measured)})


def _skip_cropped(embedded: EmbeddedSplit, moved: Mapping[int, EmbeddedSplit]) -> list[Measured]:
    """Skipped figures of jitter where some regions are in the frame only before or after it; else none."""
    if all(_bears_regions_of(embedded, split) for split in moved.values()):
        return []
    reason = "jitter moves regions across the rim of the frame, which is cropped; a geometry that pads has them all"
    whole = next(iter_strata(embedded))
    return [
        skipped("robustness", f"region_jitter_cosine@{percent}", reason, n=split.num_regions, stratum=whole)
        for percent, split in moved.items()
    ]


def _bears_regions_of(embedded: EmbeddedSplit, moved: EmbeddedSplit) -> bool:
    """Whether both splits have the same regions, row by row, wherever their boxes are."""
    texts = [[region["description"] for region in split.region_facts] for split in (embedded, moved)]
    return np.array_equal(embedded.region_image, moved.region_image) and texts[0] == texts[1]


def embed_jittered(inputs: TaskInputs) -> dict[int, EmbeddedSplit]:
    """Percent -> the split embedded with boxes jittered by that much at most.

    The boxes depend on the seed and the image's name alone, so that all models see the same. The examples are gone
    through once for each percentage.
    """
    found = {}
    for percent in JITTER_PERCENTS:
        moved = (jitter_example(example, percent / 100, inputs.seed) for example in inputs.examples)
        found[percent] = inputs.embed(moved)
    return found


def measure_jitter(embedded: EmbeddedSplit, jittered: Mapping[int, np.ndarray], *, seed: int = 0) -> list[Measured]:
    """`region_jitter_cosine@PERCENT` of every stratum; the protocol holds the 10th percentile beside the mean."""
    for embeds in jittered.values():
        if len(embeds) != embedded.num_regions:
            raise ValueError(
                f"{embedded.num_regions} regions were embedded exactly and {len(embeds)} with jitter; they must be the "
                "same ones. A geometry that crops loses regions at its rim: use geometry='pad'."
            )
    measured = []
    cosines = {percent: _cosines(embedded.region_embeds, embeds) for percent, embeds in jittered.items()}
    for stratum in iter_strata(embedded):
        is_query = stratum.is_member[embedded.region_image]
        for percent, values in cosines.items():
            asked = values[is_query]
            tenth = {"of_the_model": {"p10": float(np.percentile(asked, 10))}} if len(asked) else {}
            measured.append(
                mean_figure(
                    "robustness",
                    f"region_jitter_cosine@{percent}",
                    asked,
                    embedded.region_clusters[is_query],
                    stratum=stratum,
                    seed=seed,
                    protocol={"jitter": _jitter_meaning(percent), **tenth},
                    nothing="no regions",
                )
            )
    return measured


def _jitter_meaning(percent: int) -> str:
    """The jitter in words, for the protocol."""
    return f"every edge by at most {percent} % of its side"


def measure_jittered_accuracy(
    embedded: EmbeddedSplit, jittered: Mapping[int, np.ndarray], *, seed: int = 0
) -> list[Measured]:
    """`region_to_text_accuracy_jitter@PERCENT`, of sources too, and what is lost of it by jitter on the whole split."""
    if not jittered:
        return []
    exact, regions = region_text_hits(embedded, embedded.region_embeds), np.arange(embedded.num_regions)
    measured = []
    for percent, embeds in jittered.items():
        hits, meaning = region_text_hits(embedded, embeds), _jitter_meaning(percent)
        for stratum in iter_strata(embedded):
            is_asked = stratum.is_member[embedded.region_image]
            if stratum.name is not None or not is_asked.any():
                continue
            figure = mean_figure(
                "robustness",
                f"region_to_text_accuracy_jitter@{percent}",
                hits[is_asked],
                embedded.region_clusters[is_asked],
                stratum=stratum,
                seed=seed,
                protocol={"jitter": meaning, **_gallery_of(embedded)},
            )
            measured.append(figure)
        measured.append(_drop(embedded, regions, exact, hits, f"jitter@{percent}", meaning, seed))
    return measured


def embed_perturbed(inputs: TaskInputs) -> dict[str, PerturbedImages]:
    """Name of each of PERTURBATIONS -> the images chosen for it, embedded under it; one pass over the examples.

    Every process decodes and changes its own share of the images alone.
    """
    embedded, num = inputs.embedded, len(PERTURBATIONS)
    is_chosen = choose_images(embedded.image_ids)
    images, regions = np.flatnonzero(is_chosen), np.flatnonzero(is_chosen[embedded.region_image])
    options = {"readings": [inputs.region_reading], "device": inputs.device}
    parts: list[tuple[int, tuple[ComputedRows, np.ndarray]]] = []
    with embedding_bar(inputs.is_shown and inputs.share.is_main) as bar:
        batches = batched(compress(inputs.examples, is_chosen), max(1, inputs.batch_size // num))
        for number, batch in inputs.share.own(batches):
            changed = list(perturb_all(batch, PERTURBATIONS, inputs.seed))  # image 0 under all, image 1, ...
            computed = embed_batch(inputs.model, inputs.processor, changed, **options)
            kinds = np.repeat(np.arange(len(changed)) % num, [len(example["regions"]) for example in changed])
            parts.append((number, (computed, kinds[computed.is_inside])))
            bar.update(len(changed) * inputs.share.num_processes)
    rows, kinds_of = zip(*inputs.share.join(parts), strict=True)
    whole, kinds = ComputedRows.join(rows), np.concatenate(kinds_of)
    region_embeds = whole.region_embeds[inputs.region_reading]
    if len(kinds) != num * len(regions):
        raise ValueError(
            f"{len(regions)} regions were embedded in the images as they are and {len(kinds)} under {num} changes; "
            "they must be the same ones. A geometry that crops loses regions at its rim: use geometry='pad'."
        )
    return {
        perturbation.name: PerturbedImages(images, regions, whole.image_embeds[row::num], region_embeds[kinds == row])
        for row, perturbation in enumerate(PERTURBATIONS)
    }


def choose_images(image_ids: Sequence[str]) -> np.ndarray:
    """(N,) bool: the MAX_PERTURBED_IMAGES images whose names have the smallest hash, or all of fewer."""
    order = np.argsort(np.array([name_hash(name) for name in image_ids], dtype=np.uint64), kind="stable")
    is_chosen = np.zeros(len(image_ids), dtype=bool)
    is_chosen[order[:MAX_PERTURBED_IMAGES]] = True
    return is_chosen


def measure_perturbed(
    embedded: EmbeddedSplit, perturbed: Mapping[str, PerturbedImages], *, seed: int = 0
) -> list[Measured]:
    """The figures of worse images, by name of the perturbation; of drops the protocol has the sources."""
    meanings = {perturbation.name: perturbation.meaning for perturbation in PERTURBATIONS}
    exact = region_text_hits(embedded, embedded.region_embeds) if embedded.num_regions else np.zeros(0, dtype=bool)
    measured = []
    for name, changed in perturbed.items():
        figure = mean_figure(
            "robustness",
            f"image_cosine_{name}",
            _cosines(embedded.image_embeds[changed.images], changed.image_embeds),
            embedded.image_clusters[changed.images],
            stratum=_whole_of(embedded),
            seed=seed,
            protocol={"change": meanings[name], "images": "those whose names have the smallest hash"},
        )
        measured.append(figure)
        if len(changed.regions):
            before = exact[changed.regions]
            after = region_text_hits(embedded, changed.region_embeds, changed.regions)
            measured.append(_drop(embedded, changed.regions, before, after, name, meanings[name], seed))
    return measured


def _drop(
    embedded: EmbeddedSplit,
    regions: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    name: str,
    meaning: str,
    seed: int,
) -> Measured:
    """`region_to_text_accuracy_drop_NAME` from the outcomes of regions (m,) as they are and changed, (m,) bool each."""
    sources = embedded.image_sources[embedded.region_image[regions]]
    by_source = {
        source: {"before": float(before[is_of].mean()), "after": float(after[is_of].mean()), "n": int(is_of.sum())}
        for source, is_of in ((source, sources == source) for source in sorted(set(sources.tolist())))
    }
    accuracies = {"before": float(before.mean()), "after": float(after.mean()), "by_source": by_source}
    return mean_figure(
        "robustness",
        f"region_to_text_accuracy_drop_{name}",
        before.astype(np.float64) - after,
        embedded.region_clusters[regions],
        stratum=_whole_of(embedded),
        seed=seed,
        protocol={"change": meaning, "lower_is_better": True, **_gallery_of(embedded), "of_the_model": accuracies},
    )


def _gallery_of(embedded: EmbeddedSplit) -> dict[str, Any]:
    """The protocol of a choice among all region texts of the split."""
    texts = embedded.region_texts
    return {"gallery": len(texts), "unique_texts": len(texts), "prompts_sha256": hash_texts(texts)}


def _whole_of(embedded: EmbeddedSplit) -> Stratum:
    """The whole split."""
    return Stratum(None, None, np.ones(embedded.num_images, dtype=bool))


def _cosines(embeds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) float64 inner products of paired unit embeddings (n, D)."""
    return (embeds.astype(np.float64) * others).sum(axis=1)


def list_curves(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Rows of the whole split for a picture: what was changed, by how much, what is lost; by figure and strength."""
    rows = []
    for figure in measured:
        stem, at, strength = figure.metric.partition("@")
        if at and figure.source is None and figure.stratum is None and figure.value is not None:
            rows.append(
                {
                    "figure": stem,
                    "strength": int(strength),
                    "value": figure.value,
                    "low": figure.low,
                    "high": figure.high,
                }
            )
    return sorted(rows, key=lambda row: (row["figure"], row["strength"]))
