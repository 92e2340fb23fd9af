"""Phrase grounding without boxes given: where a phrase's heat lies, and which boxes the model gives, none included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import iter_resample_weights, percentile_interval
from regionmed_clip.eval.metrics.classification import weighted_auroc
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure, share_figure
from regionmed_clip.eval.tasks.grounding_maps import (
    MATCH_IOU,
    MAX_RASTER_PX,
    THRESHOLDS,
    BoxPath,
    FoundBoxes,
    GroundedPhrases,
    ground_split,
    paths_of,
)
from regionmed_clip.eval.tasks.grounding_phrases import ABSENT_RULE, list_phrases
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.eval.tasks.tuning import find_tuning, tuned_on

MAX_TUNING_IMAGES = 300
NUM_WORST = 12
NO_PHRASES = "no phrases: no region with a text"
MAP_METRICS = (
    "grounding_contrast_to_noise_ratio",
    "grounding_contrast_to_noise_ratio_absolute",
    "grounding_pointing_game",
    "grounding_mean_iou",
)
BOX_METRICS = ("grounding_box_f1", "grounding_box_recall", "grounding_box_precision", "grounding_absent_accuracy")


@dataclass(frozen=True)
class GroundingSettings:
    """What was chosen on the tuning split.

    Attributes:
        map_threshold: row of THRESHOLDS at which a map is cut, by its mean overlap with the boxes.
        path, box_threshold: which boxes, and the least cosine of one, by the F1 of boxes at MATCH_IOU.
        tuned_on: for the protocol.
    """

    map_threshold: int
    path: BoxPath
    box_threshold: float
    tuned_on: dict[str, Any]


def measure(inputs: TaskInputs) -> TaskFindings:
    """The grounding figures of every stratum, one patient's images resampled together.

    Of phrases that an image shows: `grounding_contrast_to_noise_ratio` (signed; heat inside the boxes less heat outside
    in units of their noise) and `_absolute` (BioViL's form), `grounding_pointing_game` (the peak lies in a box),
    `grounding_mean_iou` (boxes against the map cut at a cosine chosen on the tuning split). Of the boxes that the model
    gives for all phrases, at a cosine chosen there too: `grounding_box_f1`, `_recall` (also for phrases of one box and
    of several), `_precision`, and `grounding_absent_accuracy`, the share of absent phrases that get no box.
    `grounding_presence_auroc`: does the peak of the heat tell phrases that are shown from absent ones.

    Source: BioViL's protocol on MS-CXR, arXiv:2204.09817, for contrast and overlap; pointing game: arXiv:1608.00507.
    """
    phrases = list_phrases(inputs.embedded, seed=inputs.seed)
    whole = Stratum(None, None, np.ones(inputs.embedded.num_images, dtype=bool))
    if not phrases.num_boxes.any():
        names = (*MAP_METRICS, *BOX_METRICS, "grounding_presence_auroc")
        return TaskFindings(measured=[skipped("grounding", name, NO_PHRASES, n=0, stratum=whole) for name in names])
    settings = choose_settings(inputs)
    paths = () if isinstance(settings, str) else (settings.path,)
    grounded = ground_split(inputs, inputs.embedded, inputs.examples, phrases, paths)
    measured = measure_grounding(inputs.embedded, grounded, settings, seed=inputs.seed)
    return TaskFindings(measured=measured, details=_details(inputs.embedded, grounded, settings))


def choose_settings(inputs: TaskInputs) -> GroundingSettings | str:
    """The settings by the first MAX_TUNING_IMAGES images of the tuning split, or the reason why there are none."""
    embedded, reason = find_tuning(inputs)
    if embedded is None:
        return reason
    num_images = min(embedded.num_images, MAX_TUNING_IMAGES)
    phrases = list_phrases(embedded, seed=inputs.seed).of_images(range(num_images))
    if not phrases.num_boxes.any():
        return f"no phrases in the split {inputs.tuning_split!r} to choose a threshold on"
    examples = islice(inputs.examples_of(inputs.tuning_split), num_images)
    grounded = ground_split(inputs, embedded, examples, phrases, paths_of(inputs))
    return tune(grounded, tuned_on(inputs, num_images))


def tune(grounded: GroundedPhrases, chosen_on: dict[str, Any]) -> GroundingSettings:
    """The thresholds and the kind of boxes that are best on these phrases; of equals the first.

    Args:
        chosen_on: for the protocol, see `tuned_on`.
    """
    curve = grounded.ious[grounded.is_mapped].sum(axis=0, dtype=np.float64)
    num_truths = int(grounded.phrases.num_boxes.sum())
    best = {path: best_f1(found, num_truths) for path, found in grounded.found.items()}
    path = max(best, key=lambda name: best[name][0])
    return GroundingSettings(int(curve.argmax()), path, best[path][1], chosen_on)


def best_f1(found: FoundBoxes, num_truths: int) -> tuple[float, float]:
    """(F1 of the boxes, least score) at the best threshold among the scores; (0, 1) without boxes.

    Args:
        num_truths: annotated boxes of all phrases.
    """
    if not len(found.scores):
        return 0.0, 1.0
    order = np.argsort(-found.scores, kind="stable")
    scores, is_match = found.scores[order], found.is_match[order]
    f1 = 2 * is_match.cumsum() / (np.arange(1, len(scores) + 1) + num_truths)
    is_last_of_equals = np.append(scores[1:] != scores[:-1], True)
    best = int(np.where(is_last_of_equals, f1, -1.0).argmax())
    return float(f1[best]), float(scores[best])


def measure_grounding(
    embedded: EmbeddedSplit, grounded: GroundedPhrases, settings: GroundingSettings | str, *, seed: int = 0
) -> list[Measured]:
    """The figures of every stratum; see `measure`. `settings` may be the reason why there are none."""
    measured = []
    for stratum in iter_strata(embedded):
        is_asked = stratum.is_member[grounded.phrases.images]
        if is_asked.any() or stratum.source is None:
            measured.extend(_of_maps(grounded, settings, stratum, is_asked, seed))
            measured.append(_presence_auroc(grounded, stratum, is_asked, seed))
            measured.extend(_of_boxes(grounded, settings, stratum, is_asked, seed))
    return measured


def _protocol(grounded: GroundedPhrases, is_asked: np.ndarray) -> dict[str, Any]:
    """What all figures of these phrases have in common."""
    texts = {grounded.phrases.texts[row] for row in np.flatnonzero(is_asked)}
    return {"unique_texts": len(texts), "prompts_sha256": hash_texts(texts)}


def _of_maps(
    grounded: GroundedPhrases, settings: GroundingSettings | str, stratum: Stratum, is_asked: np.ndarray, seed: int
) -> Iterator[Measured]:
    """The figures of the maps of phrases that are shown."""
    is_shown = is_asked & grounded.is_mapped
    raster = f"the original image, made no larger than {MAX_RASTER_PX} pixels, maps read bilinearly"
    shared = _protocol(grounded, is_shown) | {"raster": raster}
    num_left_out = int((is_asked & (grounded.phrases.num_boxes > 0) & ~grounded.is_mapped).sum())
    if num_left_out:
        shared["left_out"] = f"{num_left_out} phrases whose boxes fill the image or are cropped away"
    common = {"stratum": stratum, "seed": seed, "nothing": "no phrase that is shown"}
    contrasts, clusters = grounded.contrasts[is_shown], grounded.clusters[is_shown]
    for metric, values, form in (
        (MAP_METRICS[0], contrasts, "(mean inside - mean outside) / sqrt(var inside + var outside)"),
        (MAP_METRICS[1], np.abs(contrasts), "|mean inside - mean outside| / sqrt(var inside + var outside)"),
    ):
        protocol = {**shared, "form": form, "chance": 0.0 if metric == MAP_METRICS[0] else None}
        yield mean_figure("grounding", metric, values, clusters, protocol=protocol, **common)
    chance = float(grounded.area_shares[is_shown].mean()) if is_shown.any() else None
    protocol = {**shared, "chance": chance, "hit": "the centre of the hottest patch lies in a box, of equals all"}
    yield mean_figure("grounding", MAP_METRICS[2], grounded.is_hit[is_shown], clusters, protocol=protocol, **common)
    if isinstance(settings, str):
        yield skipped("grounding", MAP_METRICS[3], settings, n=int(is_shown.sum()), stratum=stratum, **shared)
        return
    threshold = {"threshold": float(THRESHOLDS[settings.map_threshold])}
    cut = {"tuned_on": settings.tuned_on, "of_the_model": threshold}
    ious = grounded.ious[is_shown, settings.map_threshold]
    # a map that is hot everywhere overlaps by the share of the boxes
    yield mean_figure(
        "grounding", MAP_METRICS[3], ious, clusters, protocol={**shared, **cut, "chance": chance}, **common
    )


def _presence_auroc(grounded: GroundedPhrases, stratum: Stratum, is_asked: np.ndarray, seed: int) -> Measured:
    """`grounding_presence_auroc` with its interval."""
    metric, is_shown = "grounding_presence_auroc", grounded.phrases.num_boxes[is_asked] > 0
    protocol = {**_protocol(grounded, is_asked), "absent": ABSENT_RULE, "chance": 0.5}
    num = int(is_asked.sum())
    if not num or is_shown.all() or not is_shown.any():
        reason = "needs phrases that are shown and absent ones"
        return skipped("grounding", metric, reason, n=num, stratum=stratum, **protocol)
    names, clusters = np.unique(grounded.clusters[is_asked], return_inverse=True)
    peaks = grounded.peaks[is_asked]
    resampled = np.concatenate(
        [
            weighted_auroc(peaks, is_shown, weights[:, clusters])
            for weights in iter_resample_weights(len(names), seed=seed, width=num)
        ]
    )
    low, high = percentile_interval(resampled)
    return Measured(
        task="grounding",
        metric=metric,
        value=float(weighted_auroc(peaks, is_shown, np.ones((1, num)))[0]),
        low=low,
        high=high,
        n=num,
        source=stratum.source,
        stratum=stratum.name,
        protocol={**protocol, "shown": int(is_shown.sum()), "absent_n": int((~is_shown).sum())},
        resampled=resampled,
        clusters=grounded.clusters[is_asked],
    )


def _of_boxes(
    grounded: GroundedPhrases, settings: GroundingSettings | str, stratum: Stratum, is_asked: np.ndarray, seed: int
) -> Iterator[Measured]:
    """The figures of the boxes that the model gives."""
    num_boxes = grounded.phrases.num_boxes
    shared = _protocol(grounded, is_asked) | {"iou": MATCH_IOU, "absent": ABSENT_RULE}
    if isinstance(settings, str):
        for metric in BOX_METRICS:
            yield skipped("grounding", metric, settings, n=int(is_asked.sum()), stratum=stratum, **shared)
        return
    given, right = _count_boxes(grounded, settings)
    source, share = settings.path
    rows = np.flatnonzero(is_asked)
    chosen = {"boxes": source, "threshold": settings.box_threshold, "given": int(given[rows].sum())}
    chosen |= {"heat_share": share} if source == "heat" else {}
    shared |= {"tuned_on": settings.tuned_on, "of_the_model": chosen}
    common = {"seed": seed, "protocol": shared}
    for metric, hits, totals, reason, n in (
        (BOX_METRICS[0], 2 * right, given + num_boxes, "no box is annotated or given", len(rows)),
        (BOX_METRICS[1], right, num_boxes, "no box is annotated", None),
        (BOX_METRICS[2], right, given, "no box is given", len(rows)),
    ):
        counts = (hits[rows], totals[rows], grounded.clusters[rows])
        yield share_figure("grounding", metric, *counts, stratum=stratum, nothing=reason, n=n, **common)
    absent = rows[num_boxes[rows] == 0]
    yield mean_figure(
        "grounding",
        BOX_METRICS[3],
        given[absent] == 0,
        grounded.clusters[absent],
        stratum=stratum,
        nothing="no absent phrase",
        **common,
    )
    if stratum.source is None:
        for name, is_of in (("phrases of one box", num_boxes == 1), ("phrases of several boxes", num_boxes > 1)):
            counts = (right[is_of], num_boxes[is_of], grounded.clusters[is_of])
            part = replace(stratum, name=name)
            yield share_figure("grounding", BOX_METRICS[1], *counts, stratum=part, nothing=f"no {name}", **common)


def _count_boxes(grounded: GroundedPhrases, settings: GroundingSettings) -> tuple[np.ndarray, np.ndarray]:
    """((Q,) boxes given for each phrase, (Q,) those of them that are right), int64."""
    found, num = grounded.found[settings.path], len(grounded.phrases.texts)
    is_kept = found.scores >= settings.box_threshold
    given = np.bincount(found.phrases[is_kept], minlength=num)
    return given, np.bincount(found.phrases[is_kept & found.is_match], minlength=num)


def _details(embedded: EmbeddedSplit, grounded: GroundedPhrases, settings: GroundingSettings | str) -> dict[str, Any]:
    """ "grounding_iou_curve": mean overlap by threshold; "grounding_worst": the phrases with the lowest contrast."""
    mapped = np.flatnonzero(grounded.is_mapped)
    curve = grounded.ious[mapped].sum(axis=0, dtype=np.float64) / max(len(mapped), 1)
    ranked = mapped[np.argsort(grounded.contrasts[mapped], kind="stable")]
    worst = [
        {
            "image_id": embedded.image_ids[grounded.phrases.images[row]],
            "phrase": grounded.phrases.texts[row],
            "boxes_pixel_xyxy": grounded.phrases.boxes[row].tolist(),
            "contrast_to_noise_ratio": float(grounded.contrasts[row]),
            "is_hit": bool(grounded.is_hit[row]),
        }
        for row in ranked[:NUM_WORST].tolist()
    ]
    steps = slice(None, None, 4)
    chosen = None if isinstance(settings, str) else float(THRESHOLDS[settings.map_threshold])
    return {
        "grounding_iou_curve": {
            "threshold": THRESHOLDS[steps].tolist(),
            "mean_iou": curve[steps].tolist(),
            "chosen_threshold": chosen,
        },
        "grounding_worst": worst,
    }
