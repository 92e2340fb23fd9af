"""Parts of a split's regions over which figures are taken apart: size of the box, finding, sex and age."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit

AREA_EDGES = (0.0, 0.001, 0.01, 0.05, 1.0)  # shares of the image: fixed, so that data sets can be compared
AREA_NAMES = ("below 0.1 %", "0.1 to 1 %", "1 to 5 %", "5 % and more")
AGE_EDGES = (0.0, 18.0, 40.0, 60.0, 80.0, np.inf)
AGE_NAMES = ("below 18", "18 to 39", "40 to 59", "60 to 79", "80 and more")
MIN_REGIONS = 20  # fewer give no stratum of their own: their interval would say nothing
SEX_UNKNOWN = ""


@dataclass(frozen=True)
class RegionStratum:
    """Some regions of a split: `source` (None: of all), `name` ("area 1 to 5 %"), is_member (M,) bool."""

    source: str | None
    name: str
    is_member: np.ndarray


def iter_region_strata(embedded: EmbeddedSplit) -> Iterator[RegionStratum]:
    """The strata of the whole split by area, sex and age, and of every source by area and finding.

    Only parts of at least MIN_REGIONS regions, and only where there are two such parts or more. Of one source alone the
    area is not told twice. Sex and age are left out where unknown; a finding is that of regions that are not negated.
    """
    sources = embedded.image_sources[embedded.region_image]
    names = sorted(set(sources.tolist()))
    yield from _parts(None, "area", AREA_NAMES, _area_of(embedded))
    yield from _parts(None, "sex", *_sex_of(embedded))
    yield from _parts(None, "age", AGE_NAMES, _age_of(embedded))
    for source in names:
        is_of_source = sources == source
        if len(names) > 1:
            yield from _parts(source, "area", AREA_NAMES, np.where(is_of_source, _area_of(embedded), -1))
        findings = np.where(is_of_source & ~embedded.region_is_negated, embedded.region_findings, "")
        labels, rows = np.unique(findings, return_inverse=True)
        yield from _parts(source, "finding", labels.tolist(), np.where(findings == "", -1, rows))


def _parts(source: str | None, kind: str, names: Sequence[str], rows: np.ndarray) -> Iterator[RegionStratum]:
    """The strata "kind name" of the regions by their row (M,) int in `names`, -1: of none; see `iter_region_strata`."""
    counts = np.bincount(rows[rows >= 0], minlength=len(names))
    large = np.flatnonzero(counts >= MIN_REGIONS)
    if len(large) > 1:
        for row in large.tolist():
            yield RegionStratum(source, f"{kind} {names[row]}", rows == row)


def _area_of(embedded: EmbeddedSplit) -> np.ndarray:
    """(M,) int64 row in AREA_NAMES of each box's share of its image."""
    return np.clip(np.digitize(embedded.region_area_shares, AREA_EDGES[1:-1]), 0, len(AREA_NAMES) - 1)


def _sex_of(embedded: EmbeddedSplit) -> tuple[list[str], np.ndarray]:
    """(the sexes that are known, (M,) int64 row of each region's, -1 where unknown)."""
    sexes, rows = np.unique(embedded.image_sexes[embedded.region_image], return_inverse=True)
    is_known = sexes != SEX_UNKNOWN
    places = np.cumsum(is_known) - 1  # the unknown sex, "", sorts first: -1
    return sexes[is_known].tolist(), places[rows] if len(rows) else rows


def _age_of(embedded: EmbeddedSplit) -> np.ndarray:
    """(M,) int64 row in AGE_NAMES of the age of each region's patient, -1 where unknown."""
    ages = embedded.image_ages[embedded.region_image].astype(np.float64)
    rows = np.clip(np.digitize(ages, AGE_EDGES[1:-1]), 0, len(AGE_NAMES) - 1)
    return np.where(np.isfinite(ages), rows, -1)
