"""Wordings of what is stated of a whole image: templates for captions, findings, impressions and normality.

Wordings are numbered from 0; those of one meaning share its key (text_keys.py). The published wording of captions.py is
not among them. `names` chooses among the synonyms of the findings: number k takes every finding's name k, in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regionmed_clip.processing.corpus.captions import Statement, bare_phrase, counted_phrase
from regionmed_clip.processing.corpus.grammar import capitalize, join_list
from regionmed_clip.processing.corpus.synonyms import names_of_finding

NUM_CAPTION_WORDINGS = NUM_FINDINGS_WORDINGS = NUM_IMPRESSION_WORDINGS = 4
NORMAL_WORDINGS = (
    "There is no focal abnormality.",
    "No focal abnormality is seen.",
    "The image shows no focal abnormality.",
    "No sign of a focal abnormality.",
)
_ABNORMALITY = "focal abnormality"


def word_caption(
    number: int, names: int, study: str, counted_statements: Sequence[tuple[Statement, str]], *, is_normal: bool = False
) -> str:
    """A sentence that says what `captions.say_caption` says of the same study and statements."""
    present, absent = _split(counted_statements, names)
    if is_normal:
        study, absent = f"normal {study}", absent or [_ABNORMALITY]
    seen, denied = join_list(present), join_list(absent, "or")
    if not seen and not denied:
        return f"{('Image', 'Shown', 'Type of image', 'Study')[number]}: {study}."
    if not seen:
        templates = (
            f"This {study} shows no {denied}.",
            f"No {denied} on {study}.",
            f"{capitalize(study)}: no {denied}.",
            f"{capitalize(study)} showing no {denied}.",
        )
        return templates[number]
    templates = (
        f"This {study} shows {seen}{f', but no {denied}' if denied else ''}.",
        f"{capitalize(seen)} on {study}{f', without {denied}' if denied else ''}.",
        f"{capitalize(study)}: {seen}{f'; no {denied}' if denied else ''}.",
        f"{capitalize(study)} showing {seen}{f' and no {denied}' if denied else ''}.",
    )
    return templates[number]


def word_findings(
    number: int, names: int, counted_statements: Sequence[tuple[Statement, str]], *, is_normal: bool = False
) -> str:
    """Sentences that say what `captions.write_findings` says of the same statements; "" where there is nothing."""
    present, absent = _split(counted_statements, names)
    if is_normal and not counted_statements:
        return NORMAL_WORDINGS[number]
    if is_normal:
        absent = [*absent, _ABNORMALITY]
    if not present and not absent:
        return ""
    seen, denied = join_list(present), join_list(absent, "or")
    templates = (
        (f"The image shows {seen}.", f"There is no {denied}."),
        (f"Findings: {seen}.", f"No {denied}."),
        (f"Seen: {seen}.", f"Not seen: {denied}."),
        tuple(f"{capitalize(text)}." for text in (seen, f"without {denied}")),
    )
    return " ".join(text for text, is_said in zip(templates[number], (seen, denied)) if is_said)


def word_impression(number: int, names: int, statements: Sequence[Statement], *, is_normal: bool = False) -> str:
    """A sentence that says what `captions.write_impression` says of the same statements; "" where there is nothing."""
    if is_normal:
        return NORMAL_WORDINGS[number]
    said = [bare_phrase(_named(statement, names)) for statement in statements]
    if not said:
        return ""
    templates = (
        f"Impression: {join_list(said)}.",
        f"In summary, {join_list(said)}.",
        f"Conclusion: {join_list(said)}.",
        f"{capitalize('; '.join(said))}.",
    )
    return templates[number]


def _split(counted_statements: Sequence[tuple[Statement, str]], names: int) -> tuple[list[str], list[str]]:
    """(phrases of what is there, phrases of what is denied) in order, the findings under their names number `names`."""
    named = [(_named(statement, names), count) for statement, count in counted_statements]
    present = [counted_phrase(statement, count) for statement, count in named if not statement.is_negated]
    return present, [bare_phrase(statement) for statement, _ in named if statement.is_negated]


def _named(statement: Statement, number: int) -> Statement:
    """The statement with its finding under another of its names."""
    names = names_of_finding(statement.finding)
    return statement if len(names) == 1 else replace(statement, finding=names[number % len(names)])
