"""Multi-level text: the texts of an image and of its regions, from the whole report down to single attributes.

A text states what the record states, or less, never more. Which templates and synonyms it is written with depends on
the image's id and a seed alone, not on the other images, the order of reading or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from regionmed_clip.processing.corpus.captions import (
    count_full_statements,
    count_statements,
    describe_region,
    is_normal_caption,
    list_impressions,
    state_region,
    study_phrase,
    write_findings,
    write_impression,
)
from regionmed_clip.processing.corpus.finding_table import names_something
from regionmed_clip.processing.corpus.image_wording import (
    NORMAL_WORDINGS,
    NUM_CAPTION_WORDINGS,
    NUM_FINDINGS_WORDINGS,
    NUM_IMPRESSION_WORDINGS,
    word_caption,
    word_findings,
    word_impression,
)
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord, TextRecord
from regionmed_clip.processing.corpus.seeded_choice import SeededChoice
from regionmed_clip.processing.corpus.text_keys import (
    caption_key,
    findings_key,
    free_text_key,
    impression_key,
    normal_key,
    region_text_key,
    stated_caption_key,
    statement_key,
)
from regionmed_clip.processing.corpus.wording import state_shortly, word_attributes, word_denial, word_region

_NUM_NAMES = 12  # a number of synonyms is drawn below this: divisible by how many names a finding has


def claims_normality(record: StudyRecord) -> bool:
    """True where the record says by template that nothing abnormal is seen; the mere lack of boxes does not say so."""
    return record.text_origin == "template" and is_normal_caption(record.caption)


def write_texts(record: StudyRecord, seed: int = 0) -> tuple[TextRecord, ...]:
    """The texts of a record by level (TEXT_LEVELS), equal for equal record and seed; no text comes twice in a level.

    Of the image: `caption`, its own and one in other words; `findings` and `impression`, its own and, where its regions
    or its claim of normality say something, one by template; `normal` where it claims that nothing abnormal is seen.
    Of each region: `region`, its description and one in other words, both all that is stated; `region_short`, the
    finding with place and side; `attribute`, a phrase for each stated attribute; `normal` where the finding is denied.
    A region of which the source names no finding has its description alone.
    """
    choice = SeededChoice("texts", seed, record.image_id)
    texts = [*_captions(record, choice), *_findings(record, choice), *_impressions(record, choice)]
    if claims_normality(record):
        texts.append(TextRecord("normal", choice.pick(NORMAL_WORDINGS), normal_key()))
    for index, region in enumerate(record.regions):
        texts += _region_texts(index, region, choice)
    key_of: dict[tuple[int | None, str], int] = {}  # a source's own words may be those of a template: they come first
    consistent = (text for text in texts if key_of.setdefault((text.region, text.text), text.key) == text.key)
    return tuple(dict.fromkeys(consistent))


def _captions(record: StudyRecord, choice: SeededChoice) -> Iterator[TextRecord]:
    yield TextRecord("caption", record.caption, caption_key(record), origin=record.text_origin)
    study = study_phrase(record.modality, record.view, record.anatomy)
    statements, is_normal = count_statements(record.regions), claims_normality(record)
    number, names = choice.below(NUM_CAPTION_WORDINGS), choice.below(_NUM_NAMES)
    text = word_caption(number, names, study, statements, is_normal=is_normal)
    yield TextRecord("caption", text, stated_caption_key(study, statements, is_normal=is_normal))


def _findings(record: StudyRecord, choice: SeededChoice) -> Iterator[TextRecord]:
    is_normal = claims_normality(record)
    key = findings_key(record.regions, is_normal=is_normal)
    template = write_findings(record.regions, is_normal=is_normal)
    number, names = choice.below(NUM_FINDINGS_WORDINGS), choice.below(_NUM_NAMES)
    worded = word_findings(number, names, count_full_statements(record.regions), is_normal=is_normal)
    return _own_and_worded("findings", record, record.findings, template, worded, key)


def _impressions(record: StudyRecord, choice: SeededChoice) -> Iterator[TextRecord]:
    is_normal = claims_normality(record)
    key = impression_key(record.regions, is_normal=is_normal)
    template = write_impression(record.regions, is_normal=is_normal)
    number, names = choice.below(NUM_IMPRESSION_WORDINGS), choice.below(_NUM_NAMES)
    worded = word_impression(number, names, list_impressions(record.regions), is_normal=is_normal)
    return _own_and_worded("impression", record, record.impression, template, worded, key)


def _own_and_worded(
    level: str, record: StudyRecord, own: str, template: str, worded: str, key: int
) -> Iterator[TextRecord]:
    """The record's own text of a level, keyed by its meaning if it is the template's, and the one worded anew."""
    if own:
        is_ours = record.text_origin == "template" and own == template
        yield TextRecord(level, own, key if is_ours else free_text_key(own), origin=record.text_origin)
    if worded:
        yield TextRecord(level, worded, key)


def _region_texts(index: int, region: RegionRecord, choice: SeededChoice) -> Iterator[TextRecord]:
    statement, short = state_region(region), state_shortly(region)
    key = statement_key(statement)
    description = region.description or describe_region(region)
    yield TextRecord("region", description, region_text_key(region), index, region.text_origin)
    if not names_something(region.finding):
        return
    others = [text for text in word_region(statement) if text != description]
    yield TextRecord("region", choice.pick(others), key, index)
    yield TextRecord("region_short", choice.pick(word_region(short)), statement_key(short), index)
    for alternatives in word_attributes(region):
        phrase = choice.pick(alternatives)
        yield TextRecord("attribute", choice.pick(phrase.texts), statement_key(phrase.statement), index)
    if statement.is_negated:
        yield TextRecord("normal", choice.pick(word_denial(statement)), key, index)
