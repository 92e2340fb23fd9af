"""English for the text templates: articles, plurals, counts in words and lists. Pure string functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
_SEVERAL_FROM, _MANY_FROM = 5, 10
_MASS_NOUN = re.compile(  # these take no article; many of them are "areas of" them
    r".*(megaly|enlargement|ectasis|edema|oedema|emphysema|ascites|thickening|pathy|fibrosis|pneumonia|disease|scarring|drusen"
    r"|steatosis|congestion|opacification|haze|fluid|\bair|\bgas|hydronephrosis|neovascularization|neovascularisation)"
)
_PLURAL_ENDINGS = (  # first match wins
    (re.compile(r"(drusen)$"), r"\1"),
    (re.compile(r"thorax$"), "thoraces"),
    (re.compile(r"(diverticul|haustr|ov)um$"), r"\1a"),
    (re.compile(r"(thromb|embol|calcul|bronch|nev|nucle)us$"), r"\1i"),
    (re.compile(r"sis$"), "ses"),
    (re.compile(r"([^aeiou])y$"), r"\1ies"),
    (re.compile(r"(s|x|z|ch|sh)$"), r"\1es"),
    (re.compile(r"$"), "s"),
)
_PLURAL_NOUN = re.compile(r".*(drusen|(?<!s)(?<!u)(?<!i)s)")
_SINGULAR_IN_S = ("ascites", "pancreas", "diabetes", "herpes")
_HEAD_ENDS = re.compile(r"\s+(of|in|with|at|on|to)\s+")  # "fracture of the rib": the head noun ends before "of"
_SAID_WITH_CONSONANT = re.compile(r"(uni|use|usu|uro|eu|one\b|once\b)")
_LETTER_WITH_VOWEL = re.compile(r"[AEFHILMNORSX](?![a-z])")  # abbreviations: an MRI, a CT


def capitalize(text: str) -> str:
    """`text` with its first letter in upper case and the rest untouched (unlike str.capitalize: "MRI" stays)."""
    return text[:1].upper() + text[1:]


def count_in_words(count: int) -> str:
    """ "one" to "four", "several" from five, "many" from ten: a stated count that the eye can check."""
    if count in _COUNT_WORDS:
        return _COUNT_WORDS[count]
    return "several" if _SEVERAL_FROM <= count < _MANY_FROM else "many"


def counted(adjectives: str, noun: str, count: str) -> str:
    """The noun phrase with article or count: "a small cyst", "mild cardiomegaly", "two areas of edema"."""
    before = f"{adjectives} " if adjectives else ""
    if is_mass_noun(noun):
        return f"{before}{noun}" if count == "one" else f"{count} areas of {before}{noun}"
    if count == "one":
        return with_article(f"{before}{noun}")
    return f"{count} {before}{plural(noun)}"


def with_article(phrase: str) -> str:
    """`phrase` after "a" or "an", by sound."""
    has_vowel = phrase[:1].lower() in "aeiou" and not _SAID_WITH_CONSONANT.match(phrase.lower())
    is_abbreviation = re.match(r"[A-Z]{2}", phrase) is not None
    return f"an {phrase}" if (_LETTER_WITH_VOWEL.match(phrase) if is_abbreviation else has_vowel) else f"a {phrase}"


def plural(noun: str) -> str:
    """The plural of a noun phrase; its head is the last word before a preposition."""
    head, *rest = _HEAD_ENDS.split(noun, maxsplit=1)
    for ending, replacement in _PLURAL_ENDINGS:
        if ending.search(head):
            return " ".join((ending.sub(replacement, head, count=1), *rest))
    raise AssertionError("the last ending matches every noun")


def is_mass_noun(noun: str) -> bool:
    """True for findings that are not counted, such as cardiomegaly or edema."""
    return _MASS_NOUN.fullmatch(_HEAD_ENDS.split(noun, maxsplit=1)[0]) is not None


def is_or_are(noun: str) -> str:
    """ "are" for a noun in the plural, such as drusen or gallstones, else "is"."""
    head = _HEAD_ENDS.split(noun, maxsplit=1)[0]
    return "are" if _PLURAL_NOUN.fullmatch(head) and not head.endswith(_SINGULAR_IN_S) else "is"


def join_list(items: Sequence[str], word: str = "and") -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    return f" {word} ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)
