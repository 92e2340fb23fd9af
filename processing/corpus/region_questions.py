"""Questions that follow by rule from the regions of a record; they are derived when asked for and never stored.

Kinds, all of them answered by what the record states and only where it decides the answer:

    region-finding, region-place, region-side, region-size, region-severity
                            asked of ONE marked region, which the text does not name. Place, side and size only where
                            another region of the image has another one: else the image tells them without the mark.
    closed-region-finding   whether the marked region shows a finding; "no" with another finding of the same image.
    closed-comparison       "Are there more X than Y?", counted in regions.
    open-comparison         of which of two findings there is more, or which covers more of the image.

A denied or doubtful region is asked nothing, and a finding that one names is compared with none. A marked region that
overlaps another one of another answer by half decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

from regionmed_clip.processing.corpus.entailment import Facts, know
from regionmed_clip.processing.corpus.finding_table import is_organ, may_be_one, names_something
from regionmed_clip.processing.corpus.grammar import counted, is_mass_noun, is_or_are, plural
from regionmed_clip.processing.corpus.records import QARecord, RegionRecord
from regionmed_clip.processing.corpus.seeded_choice import SeededChoice
from regionmed_clip.processing.corpus.synonyms import canonical_finding

MAX_MARKED_REGIONS = 4  # of an image; a blood film has a hundred cells
MIN_AREA_RATIO = 2.0  # of the boxes of two findings, so that the larger box surely covers more
MAX_OVERLAP = 0.5  # intersection over union up to which two boxes mark different things
_TOLD_BY_IMAGE = ("region-place", "region-side", "region-size")  # where all regions that state it agree
Derived = tuple[QARecord, int | None]  # a question and the index of the region that it marks

_MARKED: tuple[tuple[str, Callable[[Facts], str | None], tuple[str, ...]], ...] = (
    (
        "region-finding",
        lambda facts: facts.finding,
        ("What does the marked region show?", "What is the finding in the marked region?"),
    ),
    (
        "region-place",
        lambda facts: facts.place,
        ("Where is the marked region?", "Where is the finding in the marked region?"),
    ),
    (
        "region-side",
        lambda facts: facts.side,
        (
            "On which side of the patient is the marked region?",
            "Which side of the patient is the marked region on?",
        ),
    ),
    (
        "region-size",
        lambda facts: facts.size,
        ("How large is the finding in the marked region?", "What size is the finding in the marked region?"),
    ),
    (
        "region-severity",
        lambda facts: facts.severity,
        ("How severe is the finding in the marked region?", "What severity has the finding in the marked region?"),
    ),
)


def derive_questions(
    regions: Sequence[RegionRecord], image_id: str, *, looked_for: frozenset[str] = frozenset(), seed: int = 0
) -> list[Derived]:
    """The questions on these regions in the order of the kinds, equal for equal arguments on every machine.

    Args:
        regions: all regions of the image, in the order of its record.
        image_id: decides, with `seed`, between wordings, findings and orders of two.
        looked_for: findings of which the image shows as many as it has regions, none where it has none:
            `Source.looked_for_in(record)`. A comparison names such findings and those of the regions only.
        seed: see image_id.
    """
    known = [know(region) for region in regions]
    is_asked = [_is_stated(facts) for facts in known]
    choice = SeededChoice("questions", seed, image_id)
    derived: list[Derived] = []
    for index in _choose_regions(known, is_asked, choice):
        derived += [(question, index) for question in _ask_of_marked(regions, known, index, choice)]
    comparisons = _compare_counts(known, looked_for, choice), _compare_areas(regions, known, choice)
    return derived + [(question, None) for questions in comparisons for question in questions]


def _is_stated(facts: Facts) -> bool:
    """Whether a region is surely there and says what it is."""
    return not facts.is_negated and facts.is_certain and names_something(facts.finding)


def _choose_regions(known: Sequence[Facts], is_asked: Sequence[bool], choice: SeededChoice) -> list[int]:
    """At most MAX_MARKED_REGIONS regions to ask of, ascending; a region of another finding before a second of one."""
    turns: Counter[str] = Counter()
    ranked = []
    for index in choice.shuffled([index for index, asked in enumerate(is_asked) if asked]):
        ranked.append((turns[known[index].finding], len(ranked), index))
        turns[known[index].finding] += 1
    return sorted(index for _, _, index in sorted(ranked)[:MAX_MARKED_REGIONS])


def _ask_of_marked(
    regions: Sequence[RegionRecord], known: Sequence[Facts], index: int, choice: SeededChoice
) -> Iterator[QARecord]:
    """The questions on one marked region, as far as its record answers them."""
    rivals = [known[other] for other in range(len(regions)) if other != index and _are_one(regions, index, other)]
    stated = [facts for facts in known if _is_stated(facts)]
    for kind, answer_of, wordings in _MARKED:
        answer, question = answer_of(known[index]), choice.pick(wordings)
        is_unclear = any(answer_of(rival) not in (None, answer) for rival in rivals)
        has_another = any(answer_of(facts) not in (None, answer) for facts in stated)
        if answer is not None and not is_unclear and (has_another or kind not in _TOLD_BY_IMAGE):
            yield QARecord(question, answer, kind)
    yield from _ask_whether(known, index, rivals, choice)


def _ask_whether(
    known: Sequence[Facts], index: int, rivals: Sequence[Facts], choice: SeededChoice
) -> Iterator[QARecord]:
    """Whether the marked region shows a finding of this image, its own or another: "yes" as often as "no"."""
    own = known[index].finding
    others = sorted({facts.finding for facts in known if _is_stated(facts) and not may_be_one(facts.finding, own)})
    if others and all(rival.finding == own for rival in rivals):
        is_yes = choice.below(2) == 1
        finding = own if is_yes else choice.pick(others)
        question = f"Does the marked region show {counted('', finding, 'one')}?"
        yield QARecord(question, "yes" if is_yes else "no", "closed-region-finding")


def _compare_counts(known: Sequence[Facts], looked_for: frozenset[str], choice: SeededChoice) -> Iterator[QARecord]:
    """A closed and an open question on which of two findings there is more; "yes" is the answer to every second one."""
    counts = _sure_counts(known, looked_for)
    pairs = [pair for pair in permutations(sorted(counts), 2) if not may_be_one(*pair)]
    more = [pair for pair in pairs if counts[pair[0]] > counts[pair[1]]]
    if not more:
        return
    if choice.below(2) == 1:
        asked, answer = _hardest(more, counts, choice), "yes"
    else:
        no_more = [pair for pair in pairs if 0 < counts[pair[1]] >= counts[pair[0]]]
        asked, answer = _hardest(no_more, counts, choice), "no"
    yield QARecord(f"Are there more {plural(asked[0])} than {plural(asked[1])}?", answer, "closed-comparison")
    larger, smaller = _hardest(more, counts, choice)
    first, second = choice.shuffled((larger, smaller))
    yield QARecord(f"Are there more {plural(first)} or more {plural(second)}?", larger, "open-comparison")


def _hardest(pairs: Sequence[tuple[str, str]], counts: Counter[str], choice: SeededChoice) -> tuple[str, str]:
    """One of the pairs: of those in which both findings are there, where there are such, every second time."""
    both = [pair for pair in pairs if counts[pair[0]] and counts[pair[1]]]
    return choice.pick(both if both and choice.below(2) else pairs)


def _sure_counts(known: Sequence[Facts], looked_for: frozenset[str]) -> Counter[str]:
    """The number of regions of every finding that can be counted and that no doubtful region may be.

    A finding without regions is 0 where it was looked for, else missing.
    """
    unsure = [facts.finding for facts in known if facts.is_negated or not facts.is_certain]
    counts = Counter(facts.finding for facts in known if _is_stated(facts))
    counts.update(dict.fromkeys(map(canonical_finding, looked_for), 0))
    for finding in list(counts):
        is_unsure = any(may_be_one(finding, other) for other in unsure)
        if is_unsure or is_mass_noun(finding) or is_or_are(finding) == "are" or is_organ(finding):
            del counts[finding]
    return counts


def _compare_areas(regions: Sequence[RegionRecord], known: Sequence[Facts], choice: SeededChoice) -> Iterator[QARecord]:
    """A question on which of two findings, each with one region, covers more of the image; none where it is close."""
    counts = Counter(facts.finding for facts in known)
    single = {facts.finding: index for index, facts in enumerate(known) if counts[facts.finding] == 1}
    single = {name: index for name, index in single.items() if _is_stated(known[index]) and not is_organ(name)}
    pairs = [
        pair
        for pair in permutations(sorted(single), 2)
        if not may_be_one(*pair) and _area(regions[single[pair[0]]]) >= MIN_AREA_RATIO * _area(regions[single[pair[1]]])
    ]
    if pairs:
        larger, smaller = choice.pick(pairs)
        first, second = choice.shuffled((larger, smaller))
        question = f"Which covers more of the image, the {first} or the {second}?"
        yield QARecord(question, larger, "open-comparison")


def _area(region: RegionRecord) -> float:
    """Square pixels of the box."""
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)


def _are_one(regions: Sequence[RegionRecord], index: int, other: int) -> bool:
    """Whether two boxes overlap so much that a mark on one is a mark on the other."""
    a, b = regions[index].box, regions[other].box
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    return shared > MAX_OVERLAP * (_area(regions[index]) + _area(regions[other]) - shared)
