"""Zero-shot classification of whole images, without boxes: is the finding present?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regionmed_clip.eval.intervals import iter_resample_weights, percentile_interval
from regionmed_clip.eval.metrics.classification import auroc, weighted_auroc
from regionmed_clip.eval.prompts import presence_prompts
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped

Question = tuple[str, str, str]  # source, modality, finding


def zero_shot_questions(embedded: EmbeddedSplit) -> list[Question]:
    """Every (source, modality, finding) that some images of that source and modality show and others do not.

    Positives and negatives come from one modality of one source, so that telling a radiograph from a blood smear
    earns nothing.
    """
    questions = []
    for source, modality in sorted(
        set(zip(embedded.image_sources.tolist(), embedded.image_modalities.tolist(), strict=True))
    ):
        images = _images_of(embedded, source, modality)
        findings = [embedded.image_findings[row] for row in images]
        for finding in sorted(set().union(*findings)):
            if not all(finding in shown for shown in findings):
                questions.append((source, modality, finding))
    return questions


def measure_zero_shot(
    embedded: EmbeddedSplit, encode: Callable[[Sequence[str]], np.ndarray], *, seed: int = 0
) -> list[Measured]:
    """`macro_auroc` of every stratum: the mean over its questions of the AUROC of cosine(image, presence prompts).

    Args:
        encode: texts -> (T, D) unit embeddings; called once with all prompts.
    """
    questions = zero_shot_questions(embedded)
    prompts = [presence_prompts(_study(embedded, s, m), finding) for s, m, finding in questions]
    flat = encode([text for group in prompts for text in group]) if prompts else np.zeros((0, 1), np.float32)
    ends = np.cumsum([len(group) for group in prompts])
    classifiers = [flat[end - len(group) : end].mean(axis=0) for group, end in zip(prompts, ends, strict=True)]
    measured = []
    for stratum in iter_strata(embedded):
        chosen = [i for i, question in enumerate(questions) if _belongs(question, stratum)]
        measured.append(
            _measure_stratum(
                embedded, stratum, [questions[i] for i in chosen], [classifiers[i] for i in chosen], prompts, seed
            )
        )
    return measured


def _study(embedded: EmbeddedSplit, source: str, modality: str) -> str:
    """The commonest name of the images of one modality of one source; the first in the alphabet of equals."""
    names, counts = np.unique(embedded.image_studies[_images_of(embedded, source, modality)], return_counts=True)
    return str(names[counts.argmax()])


def _belongs(question: Question, stratum: Stratum) -> bool:
    """Whether the question is asked of images of the stratum."""
    source, modality, _ = question
    return stratum.source in (None, source) and stratum.name in (None, modality)


def _measure_stratum(
    embedded: EmbeddedSplit,
    stratum: Stratum,
    questions: Sequence[Question],
    classifiers: Sequence[np.ndarray],
    prompts: Sequence[Sequence[str]],
    seed: int,
) -> Measured:
    """The macro AUROC of one stratum with its interval; images are resampled, all their questions together."""
    num_images = int(stratum.is_member.sum())
    if not questions:
        reason = "no finding that some images show and others do not"
        return skipped("zero_shot", "macro_auroc", reason, n=num_images, stratum=stratum)
    columns = []  # per question: rows of its images, scores, truths
    for (source, modality, finding), classifier in zip(questions, classifiers, strict=True):
        images = _images_of(embedded, source, modality)
        truth = np.array([finding in embedded.image_findings[row] for row in images])
        columns.append((images, embedded.image_embeds[images] @ classifier, truth))
    per_finding = {f"{m}: {f}": auroc(s, t) for (_, m, f), (_, s, t) in zip(questions, columns, strict=True)}
    means = []
    for weights in iter_resample_weights(embedded.num_images, seed=seed):
        values = np.stack([weighted_auroc(s, t, weights[:, images]) for images, s, t in columns])  # (questions, b)
        defined = np.isfinite(values)
        totals, counts = np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0)
        means.append(np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0))  # NaN: no such draw
    resampled = np.concatenate(means)
    low, high = percentile_interval(resampled)
    return Measured(
        task="zero_shot",
        metric="macro_auroc",
        value=float(np.mean(list(per_finding.values()))),
        low=low,
        high=high,
        n=num_images,
        source=stratum.source,
        stratum=stratum.name,
        protocol={
            "gallery": len(questions),
            "unique_texts": len({text for group in prompts for text in group}),
            "prompts_sha256": hash_texts({text for group in prompts for text in group}),
            "prompts": "presence only; negatives are images of the same source and modality",
            "chance": 0.5,
            "per_finding": {name: round(value, 4) for name, value in per_finding.items()},
        },
        resampled=resampled,
        clusters=np.flatnonzero(stratum.is_member),
    )


def _images_of(embedded: EmbeddedSplit, source: str, modality: str) -> np.ndarray:
    """Rows of the images of one modality of one source."""
    return np.flatnonzero((embedded.image_sources == source) & (embedded.image_modalities == modality))
