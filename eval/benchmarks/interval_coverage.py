"""How often our 95 % intervals of accuracy and recall hold the truth, by simulation of studies whose truth is known.

`python -m regionmed_clip.eval.benchmarks.interval_coverage [--simulations 2000] [--output FILE]` (5 minutes)

Every simulation draws a study of a few hundred queries from a population, takes `proportion_interval` of its hits, as
every task does, and looks whether the population's share of hits lies within. 95 % should; of 2,000 simulations 94 to
96 % is what chance leaves of that, and another point comes of hits being whole numbers. `bootstrap_coverage` is that of
the percentiles of the bootstrap, and `switched_coverage` that of the bootstrap with Wilson's interval in its place
where hits or misses are fewer than 10: choosing by the outcome errs on the other side.

The recall is that of images against a gallery that stays, the split's unique texts. Where the gallery is drawn anew
with every study its queries compete with each other and an interval over queries cannot know of it: the last row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from regionmed_clip.eval.benchmarks.measure import write_report
from regionmed_clip.eval.intervals import percentile_interval, proportion_interval, resample_mean
from regionmed_clip.eval.metrics.ranking import ranks_of_first_positive

NUM_SIMULATIONS = 2000
NUM_TEXTS, WIDTH, NUM_DIRECTIONS = 300, 16, 20_000
REGIONS_OF_PATIENT = np.array([1, 2, 5, 8])


@dataclass(frozen=True)
class Study:
    """What one study sees: hits (Q,) bool, patients (Q,) or None: each its own; and the share it was drawn from.

    `truth` is NaN where only many studies tell it.
    """

    hits: np.ndarray
    clusters: np.ndarray | None
    truth: float


Population = Callable[[np.random.Generator], Study]


def main() -> None:
    """Runs the simulations and prints their report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=NUM_SIMULATIONS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    write_report(options.output, run(options.simulations))


def run(num_simulations: int) -> dict[str, Any]:
    """The report: by population the coverage of both intervals in percent and the mean width of ours in points."""
    rows = {
        name: coverage(draw, num_simulations, seed=index)
        for index, (name, draw) in enumerate(tqdm(populations().items(), desc="coverage", unit="population"))
    }
    return {"simulations": num_simulations, "populations": rows}


def coverage(draw: Population, num_simulations: int, seed: int = 0) -> dict[str, float]:
    """Of that many studies: shares (%) of intervals that hold the truth, and the mean width (%) of ours."""
    generator = np.random.default_rng(seed)
    truths, shares = np.empty((2, num_simulations))
    ours, plain, switched = [], [], []
    for index in range(num_simulations):
        study = draw(generator)
        truths[index], shares[index] = study.truth, study.hits.mean()
        ours.append(proportion_interval(study.hits, study.clusters))
        plain.append(percentile_interval(resample_mean(study.hits, study.clusters, seed=index)))
        is_few = min(study.hits.sum(), (~study.hits).sum()) < 10
        switched.append(ours[-1] if is_few else plain[-1])
    truths = np.where(np.isnan(truths), shares.mean(), truths)
    return {
        "truth": round(float(truths.mean()), 4),
        "coverage": _holds(ours, truths),
        "bootstrap_coverage": _holds(plain, truths),
        "switched_coverage": _holds(switched, truths),
        "mean_width": round(100 * float(np.diff(ours, axis=1).mean()), 2),
    }


def populations() -> dict[str, Population]:
    """What is simulated, by name."""
    found = {f"accuracy {share}, 200 images": independent(share, share, 200) for share in (0.5, 0.8, 0.95, 0.99)}
    found["accuracy 0.5 to 0.99, 200 images"] = independent(0.5, 0.99, 200)
    found["accuracy 0.9 to 0.99, 200 images"] = independent(0.9, 0.99, 200)
    found["accuracy 0.8, 1000 images"] = independent(0.8, 0.8, 1000)
    for share in (0.5, 0.9):
        found[f"accuracy {share}, 4 regions each of 100 patients, alike"] = clustered(share, 100)
    for k, noise in ((1, 0.8), (5, 0.8), (10, 0.6)):
        found[f"recall@{k}, 200 images, 300 texts"] = retrieval(k, noise)
    found["recall@1, 100 patients of 2 images, 300 texts"] = retrieval(1, 0.8, images_of_patient=2)
    found["recall@1, 200 images, their 200 texts drawn anew"] = paired_retrieval(1, 0.8)
    return found


def independent(low: float, high: float, num_images: int) -> Population:
    """Images that are hits each for itself, in every study with another share between low and high."""

    def draw(generator: np.random.Generator) -> Study:
        share = float(generator.uniform(low, high))
        return Study(generator.random(num_images) < share, None, share)

    return draw


def clustered(share: float, num_patients: int) -> Population:
    """Patients with 1 to 8 regions whose chance of a hit is the patient's own (intraclass correlation 0.3)."""
    alpha, beta = (part * (1 - 0.3) / 0.3 for part in (share, 1 - share))

    def draw(generator: np.random.Generator) -> Study:
        clusters = np.repeat(np.arange(num_patients), generator.choice(REGIONS_OF_PATIENT, size=num_patients))
        chances = generator.beta(alpha, beta, size=num_patients)
        return Study(generator.random(len(clusters)) < chances[clusters], clusters, share)

    return draw


def retrieval(k: int, noise: float, images_of_patient: int = 1) -> Population:
    """Images near their texts in a random space, ranked against a gallery that stays; 200 images a study."""
    generator = np.random.default_rng(0)
    texts = generator.normal(size=(NUM_TEXTS, WIDTH))
    keys = np.repeat(generator.integers(0, NUM_TEXTS, NUM_DIRECTIONS // images_of_patient), images_of_patient)
    shift = np.repeat(generator.normal(size=(len(keys) // images_of_patient, WIDTH)), images_of_patient, axis=0)
    own = generator.normal(size=shift.shape)
    mixed = shift if images_of_patient == 1 else (shift + own) / np.sqrt(2)  # images of one patient err alike
    hits = ranks_of_first_positive(texts[keys] + noise * mixed, texts, keys, np.arange(NUM_TEXTS)) <= k
    of_patient = hits.reshape(-1, images_of_patient)
    num_patients = 200 // images_of_patient
    clusters = np.repeat(np.arange(num_patients), images_of_patient)

    def draw(generator: np.random.Generator) -> Study:
        chosen = generator.integers(0, len(of_patient), num_patients)
        return Study(of_patient[chosen].ravel(), clusters, float(hits.mean()))

    return draw


def paired_retrieval(k: int, noise: float, num_pairs: int = 200) -> Population:
    """Image-text pairs that are each other's gallery, all drawn anew; the truth is the mean over the studies."""
    keys = np.arange(num_pairs)

    def draw(generator: np.random.Generator) -> Study:
        texts, shift = generator.normal(size=(2, num_pairs, WIDTH))
        return Study(ranks_of_first_positive(texts + noise * shift, texts, keys, keys) <= k, None, float("nan"))

    return draw


def _holds(bounds: Sequence[tuple[float, float]], truths: np.ndarray) -> float:
    """Share (%) of the S intervals that hold the truth (S,)."""
    low, high = np.array(bounds).T
    return round(100 * float(((low <= truths) & (truths <= high)).mean()), 2)


if __name__ == "__main__":
    main()
