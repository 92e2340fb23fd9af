"""What a task hands back: Measured figures, the strata they are taken over, and the context that makes them Results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from regionmed_clip.eval.results import PROTOCOL_KEYS, Result


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where the numbers of one run come from; copied into every Result.

    `protocol` is what the protocol of every figure of the run says besides its own: how the model reads regions, what
    is known of its training data.
    """

    data_revision: str
    model_revision: str
    split: str
    split_sha256: str
    seed: int
    hardware: str
    command: str
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of a task, before it knows which model and run it belongs to.

    Attributes:
        value, low, high: the figure and its 95 % interval; all None when skipped (`protocol["skipped"]` says why).
        n: number of queries.
        resampled: (NUM_RESAMPLES,) the figure in every bootstrap resample, and `clusters` (Q,), the patient or text
            of each query; kept so that two models can be compared on the same queries: where both were resampled with
            one seed, the differences of their resampled figures are those of the same draws. None when skipped.
        outcomes: (Q,) float64, where the figure is the mean of a number of each query, that number; else None.
    """

    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    source: str | None = None
    stratum: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    resampled: np.ndarray | None = None
    clusters: np.ndarray | None = None
    outcomes: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """(metric, source, stratum): what identifies the figure within one model's run."""
        return self.metric, self.source, self.stratum

    def as_result(self, model_name: str, context: RunContext) -> Result:
        """The Result record of this figure."""
        protocol = dict.fromkeys(PROTOCOL_KEYS) | dict(context.protocol) | self.protocol
        protocol |= {"split": context.split, "split_sha256": context.split_sha256}
        names = ("task", "metric", "value", "low", "high", "n", "source", "stratum")
        return Result(
            model=model_name,
            protocol=protocol,
            model_revision=context.model_revision,
            data_revision=context.data_revision,
            seed=context.seed,
            hardware=context.hardware,
            command=context.command,
            **{name: getattr(self, name) for name in names},
        )


@dataclass(frozen=True)
class Stratum:
    """A part of the split: the whole (no names), a source, or a modality within a source; is_member (N,) bool."""

    source: str | None
    name: str | None
    is_member: np.ndarray


class HasImages(Protocol):
    """A split of `num_images` N images with their sources and modalities, each (N,) str."""

    image_sources: np.ndarray
    image_modalities: np.ndarray

    @property
    def num_images(self) -> int:
        """N."""
        ...


def iter_strata(embedded: HasImages) -> Iterator[Stratum]:
    """The whole, then every source (where there are several), then every modality of a source with several."""
    yield Stratum(None, None, np.ones(embedded.num_images, dtype=bool))
    sources = sorted(set(embedded.image_sources.tolist()))
    for source in sources:
        of_source = embedded.image_sources == source
        if len(sources) > 1:
            yield Stratum(source, None, of_source)
        modalities = sorted(set(embedded.image_modalities[of_source].tolist()))
        if len(modalities) > 1:
            for modality in modalities:
                yield Stratum(source, modality, of_source & (embedded.image_modalities == modality))


def skipped(task: str, metric: str, reason: str, *, n: int, stratum: Stratum, **protocol: Any) -> Measured:
    """A figure that is not computed, with the reason that the table shows beside its n/a."""
    return Measured(
        task=task,
        metric=metric,
        value=None,
        low=None,
        high=None,
        n=n,
        source=stratum.source,
        stratum=stratum.name,
        protocol={**protocol, "skipped": reason},
    )


def hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 (hex) of the sorted texts, one a line: tells whether two runs ranked the same texts."""
    return hashlib.sha256("\n".join(sorted(texts)).encode("utf-8")).hexdigest()


def choose_better(readings: dict[str, list[Measured]], deciding_metric: str) -> tuple[list[Measured], str]:
    """For every figure the better of several readings of one model, and the reading that wins `deciding_metric`.

    Figures for which higher is not better (the median cosine) come from the winning reading. Each chosen figure's
    protocol holds `reading` and `readings` (name -> value), so that nothing is hidden by the choice.
    """
    tables = {name: {m.key: m for m in measured} for name, measured in readings.items()}
    first = next(iter(tables.values()))
    decided = (deciding_metric, None, None)
    values = {name: _value_or_least(table[decided]) if decided in table else 0.0 for name, table in tables.items()}
    winner = max(values, key=lambda name: values[name])
    chosen = []
    for key in first:
        candidates = {name: table[key] for name, table in tables.items()}
        is_higher_better = not any(one.protocol.get("lower_is_better") for one in candidates.values())
        name = max(candidates, key=lambda n: _value_or_least(candidates[n])) if is_higher_better else winner
        both = {n: m.value for n, m in candidates.items()}
        chosen.append(
            replace(candidates[name], protocol={**candidates[name].protocol, "reading": name, "readings": both})
        )
    return chosen, winner


def _value_or_least(measured: Measured) -> float:
    """The value, or minus infinity for a skipped figure."""
    return -np.inf if measured.value is None else measured.value
