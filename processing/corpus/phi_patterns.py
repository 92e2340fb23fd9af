"""Patterns of personal data in free text: what kind stands where, never the value itself.

The kinds follow the identifiers that the HIPAA Privacy Rule lists (45 CFR 164.514(b)(2)(i)) and that a pattern can
find: dates other than a year, telephone numbers, e-mail and web addresses, social security and record numbers, DICOM
identifiers, names with a title or behind a label, street addresses, ages over 89. A plain name without either is not
found, nor is anything in another language than English. Placeholders of de-identified notes, `[** ... **]`, are left
out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_SURE_MONTH = (
    r"(?:January|February|April|June|July|August|September|October|November|December)"  # no other English word
)
_DAY, _MONTH_NUMBER, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_DAY_MONTH = rf"(?:{_DAY}[sep]{_MONTH_NUMBER}|{_MONTH_NUMBER}[sep]{_DAY})"
_NO_MEASURE = r"(?!\d|[./-]\d|\s?(?:(?:mm|cm|ml|cc|mg|kg)\b|%|[x\u00d7]\s?\d))"  # "10-12-15 mm" is a size
_NAME = r"[A-Z][A-Za-z'\u2019-]+"
_NUMBER = r"[A-Za-z]{0,4}[-\s]?\d[\dA-Za-z-]{2,}"
_RECORD_WORDS = (
    r"MRN|accession(?:\s(?:no|number))?|(?:(?:medical\s)?record|NHS)\s(?:no|number)"
    r"|(?:patient|hospital|chart|case|exam|study)\s(?:id|no|number)"
)
_NAME_LABELS = (
    r"patient(?:'s)?\sname|name\sof\spatient|referring\sphysician|uploader|radiologist|physician"
    r"|(?:dictated|signed|interpreted|reported|read|verified)\sby"
)

# kind -> (what it is, the patterns that find it).
_PATTERNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "date": (
        "a date more exact than a year",
        (
            rf"(?<![\d./-]){_DAY_MONTH.replace('sep', '/')}/(?:{_YEAR}|\d\d){_NO_MEASURE}",
            rf"(?<![\d./-]){_DAY_MONTH.replace('sep', '-')}-{_YEAR}{_NO_MEASURE}",
            rf"(?<![\d./-]){_DAY_MONTH.replace('sep', '.')}\.{_YEAR}{_NO_MEASURE}",
            rf"(?<![\d./-]){_YEAR}([-/.]){_MONTH_NUMBER}\1{_DAY}(?!\d)",
            rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d|\.\d)",
            rf"\b{_DAY}(?:st|nd|rd|th)?[\s-](?:of\s)?{_MONTH}[\s,.-]+{_YEAR}\b",
            rf"\b{_MONTH}\.?\s{_DAY}(?:st|nd|rd|th)?,?\s{_YEAR}\b",
            rf"\b{_MONTH}\.?,?\s(?:of\s)?{_YEAR}\b",
            rf"\b{_SURE_MONTH}\s{_DAY}(?:st|nd|rd|th)?\b{_NO_MEASURE}",
        ),
    ),
    "phone": (
        "a telephone number",
        (
            r"(?<![\d-])(?:\+?1[-. ])?(?:\(\d{3}\)\s?|\d{3}[-. ])\d{3}[-.]\d{4}(?!\d)",
            r"(?<![\d+])\+\d{1,3}[. (-]{1,2}\d[\d. ()-]{6,}\d",
            r"(?i:\b(?:tel|phone|telephone|fax|mobile|pager)\b)\.?\s?[:#]?\s?\+?\(?\d[\d. ()-]{5,}\d",
        ),
    ),
    "email": ("an e-mail address", (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",)),
    "url": ("a web address", (r"(?i:\bhttps?://|\bwww\.)\S+",)),
    "ssn": ("a social security number", (r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",)),
    "record-number": (
        "a medical record, accession or patient number",
        (
            rf"(?i:\b(?:{_RECORD_WORDS}))\b\.?\s?[:#=]?\s?(?:is\s)?{_NUMBER}",
            rf"(?i:\b(?:acc|patient|case|pt))\s?#\s?{_NUMBER}",
        ),
    ),
    "dicom-uid": ("a DICOM unique identifier", (r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![\d.]*[A-Za-z])",)),
    "name": (
        "a person's name with a title or behind a label",
        (
            rf"\b(?:Dr|Mr|Mrs|Ms|Prof|Professor|Doctor)\b\.?\s(?:[A-Z]\.?\s)*{_NAME}",
            rf"\b{_NAME},?\s(?:M\.\s?D\b\.?|MD\b(?!\s(?:imag|scan|CT)))",
            rf"(?i:\b(?:{_NAME_LABELS}))\s?[:=]\s?{_NAME}",
            rf"(?i:\b(?:dictated|signed|verified)\sby)\s{_NAME}\s{_NAME}",
            r"\b[A-Z][A-Za-z'-]+\^[A-Z][A-Za-z'-]*",
        ),
    ),
    "address": (
        "a street address",
        (rf"\b\d{{1,5}}\s(?:{_NAME}\s){{1,3}}(?:Street|St\.|Avenue|Ave\.|Road|Rd\.|Boulevard|Blvd\.?|Lane|Drive)",),
    ),
    "age-over-89": (
        "an age over 89 years",
        (
            r"(?i)(?<![\d.])(?:9\d|1[01]\d)[\s-]?(?:years?|yrs?|y)\.?[\s-]?(?:old|of\sage|/?o\b)",
            r"(?i)\bage[ds]?:?\s(?:9\d|1[01]\d)\b(?!\.\d|\s?%)",
        ),
    ),
}
PHI_KINDS: dict[str, str] = {kind: title for kind, (title, _) in _PATTERNS.items()}
_COMPILED = {kind: [re.compile(pattern) for pattern in patterns] for kind, (_, patterns) in _PATTERNS.items()}
_PLACEHOLDER = re.compile(r"\[\*\*.*?\*\*\]", flags=re.DOTALL)


@dataclass(frozen=True, slots=True)
class PhiHit:
    """Where a text holds personal data: its kind, one of PHI_KINDS, and the characters [start, stop)."""

    kind: str
    start: int
    stop: int


@lru_cache(maxsize=1 << 14)  # texts by template repeat
def find_phi(text: str) -> tuple[PhiHit, ...]:
    """What looks like personal data in `text`, by place; of overlapping hits of one kind the first one."""
    if "[**" in text:
        text = _PLACEHOLDER.sub(lambda match: " " * len(match.group()), text)
    hits: list[PhiHit] = []
    for kind, patterns in _COMPILED.items():
        spans = sorted(match.span() for pattern in patterns for match in pattern.finditer(text))
        stop = -1
        for span in spans:
            if span[0] >= stop:
                hits.append(PhiHit(kind, *span))
                stop = span[1]
    return tuple(sorted(hits, key=lambda hit: (hit.start, hit.kind)))
