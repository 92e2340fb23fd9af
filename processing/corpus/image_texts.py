"""The texts of one image as training uses them, with what they state, and the same texts of the mirrored image.

Mirroring left and right rewrites what the templates wrote, from mirrored statements, and leaves alone what names no
side. It is refused where it could make a text false: a text of the source that names a side, a view of one side or from
one ("left lateral"), and what is found on one side alone or by whose side organs are told apart (dextrocardia, the
middle lobe of a lung, the left ventricle, the left lobe of the liver). Organs that are not paired keep their names: the
mirror image of a liver is still called a liver.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from regionmed_clip.processing.corpus.captions import (
    Statement,
    bare_phrase,
    count_statements,
    describe_region,
    is_image_place,
    is_normal_caption,
    say_caption,
    state_region,
    study_phrase,
)
from regionmed_clip.processing.corpus.negatives import carry, read_negative
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.text_facts import NO_FACTS, Facts, caption_facts, statement_facts
from regionmed_clip.processing.corpus.text_keys import stated_caption_key, statement_key

_ATTRIBUTES = ("anatomy", "laterality", "place", "size", "severity", "certainty", "is_negated")
_STATED = tuple(Statement.__dataclass_fields__)
_SIDE = re.compile(r"\b(left|right)\b")
_OTHER_SIDE = {"left": "right", "right": "left"}
_ONE_SIDED = re.compile(  # has no mirror image, or one of another name
    r"\b(dextro|levo|laevo)\w*|\bsitus\b|\binversus\b|\bheterotax\w*|\bisomerism\b|\bkartagener\w*|\blingula\w*"
    r"|\bmiddle lobe\b|\b(left|right)([ -]sided)? (heart|atri|ventric|coronar|aort)\w*"
    r"|\b(left|right) (hepatic |liver )?lobe\b"
)
_NAMES_SIDE = re.compile(  # in words of a source
    r"\b(left|right|izquierd|derech)\w*|\b(l|r|lt|rt|lll|lul|lml|rll|rul|rml|od|os)\b|clock"
)
_SIDE_VIEW = re.compile(  # of studies: of one side, or not seen from the front, where left and right are no directions
    r"\b(lateral|sagittal|oblique|decubitus|ll|rl|lao|rao|lpo|rpo|lld|rld|lcc|rcc|lmlo|rmlo)\b"
)
_NAMES_HEIGHT = re.compile(  # in words of any text: what a flip of top and bottom makes false
    r"\b(upper|lower|mid|middle|top|bottom|above|below|high|low|basal|basilar|bibasilar|base|bases|apex|apical|apices)\b"
    r"|\b(superi|inferi|supra|infra|sub|anteri|posteri|ventral|dorsal|crani|caud|cephal|zone|segment|level|lobe|lobar"
    r"|costophrenic|diaphragm|hemidiaphragm|upright|erect|supine|clavic|apic)\w*|\b(supero|infero)\w+|clock|\b[lr][ulm][lz]\b"
)
_NAMES_FRAME = re.compile(r"\b(of|in) the (image|picture|frame|film)\b|\bcorner\b")  # where in the picture


class NegativeText(NamedTuple):
    """A text that is false of a region: the text, its key, and which attribute was changed (NEGATIVE_CHANGES)."""

    text: str
    key: int
    changed: str


@dataclass(frozen=True, slots=True)
class RegionTexts:
    """The text of a region, its key, what is known of the region, and texts that are false of it."""

    text: str
    key: int
    known: Statement
    negatives: tuple[NegativeText, ...] = ()

    @property
    def facts(self) -> Facts:
        """What the text states; NO_FACTS where it is the source's own words."""
        return statement_facts(self.known) if self.key == statement_key(self.known) else NO_FACTS


@dataclass(frozen=True, slots=True)
class ImageTexts:
    """The caption of an image with its key, the kind of image, and the texts of its regions."""

    caption: str
    caption_key: int
    modality: str
    view: str | None
    anatomy: str | None
    regions: tuple[RegionTexts, ...]

    @property
    def caption_facts(self) -> tuple[Facts, ...]:
        """What the caption states; () for a caption of the source, or one that states no region."""
        return self._stated_facts() if self._states_regions() else ()

    def details(self) -> str:
        """What `from_details` needs beside the texts and their keys, as JSON."""
        study = (self.modality, self.view, self.anatomy)
        known = [[getattr(region.known, name) for name in _STATED] for region in self.regions]
        negatives = [region.negatives for region in self.regions]
        return json.dumps([study, known, negatives], separators=(",", ":"))

    @classmethod
    def from_details(
        cls, caption: str, caption_key: int, texts: Sequence[str], keys: Sequence[int], details: str
    ) -> ImageTexts:
        """The texts again."""
        study, known, negatives = json.loads(details)
        regions = (
            RegionTexts(text, key, Statement(*said), tuple(NegativeText(*negative) for negative in false))
            for text, key, said, false in zip(texts, keys, known, negatives, strict=True)
        )
        return cls(caption, caption_key, *study, tuple(regions))

    def mirrored(self) -> ImageTexts | None:
        """The texts of the image with left and right exchanged; None where they cannot be told without risk.

        A negative that has no mirror image (the middle lobe of a left lung) is left out.
        """
        regions = [_mirror_region(region) for region in self.regions]
        study = self._study().lower()
        if None in regions or _names_side(study) or _SIDE_VIEW.search(study):
            return None
        mirrored = replace(self, regions=tuple(regions))
        if self._states_regions():
            statements = self._statements()
            if self.caption != self._say(statements):
                is_kept = statements == mirrored._statements() and not _names_side(self.caption)
                return mirrored if is_kept else None
            said = mirrored._statements()
            key = stated_caption_key(self._study(), said, is_normal=is_normal_caption(self.caption))
            return replace(mirrored, caption=mirrored._say(said), caption_key=key)
        return None if _names_side(self.caption) else mirrored

    def names_height(self) -> bool:
        """Whether a text names what a flip of top and bottom makes false, as nearly every place in the body does."""
        return any(_NAMES_HEIGHT.search(text) for text in self._all_said())

    def names_place_in_frame(self) -> bool:
        """Whether a text names a place in the picture itself, which a crop moves."""
        is_known = any(region.known.place and is_image_place(region.known.place) for region in self.regions)
        return is_known or any(_NAMES_FRAME.search(text) for text in self._all_said())

    def _all_said(self) -> list[str]:
        texts = [self.caption, *(region.text for region in self.regions)]
        return [*(text.lower() for text in texts), *(bare_phrase(region.known) for region in self.regions)]

    def _study(self) -> str:
        return study_phrase(self.modality, self.view, self.anatomy)

    def _statements(self) -> tuple[tuple[Statement, str], ...]:
        return _count(tuple(region.known for region in self.regions))

    def _say(self, statements: Sequence[tuple[Statement, str]]) -> str:
        return say_caption(self._study(), statements, is_normal=is_normal_caption(self.caption))

    def _states_regions(self) -> bool:
        """Whether the caption's key is that of what a template states of the regions."""
        if not self.regions:
            return False
        is_normal = is_normal_caption(self.caption)
        return self.caption_key == stated_caption_key(self._study(), self._statements(), is_normal=is_normal)

    def _stated_facts(self) -> tuple[Facts, ...]:
        is_normal = is_normal_caption(self.caption)
        return caption_facts(self.modality, self.view, self.anatomy, self._statements(), is_normal=is_normal)


def texts_of_example(example: Mapping[str, Any]) -> ImageTexts:
    """The texts of an example of the corpus; it needs no columns but those of `train.shard_store.SAMPLE_COLUMNS`."""
    false: list[list[NegativeText]] = [[] for _ in example["regions"]]
    for negative in example["negatives"]:
        if negative["region"] is not None:
            false[negative["region"]].append(NegativeText(negative["text"], negative["key"], negative["changed"]))
    regions = (
        RegionTexts(region["description"], region["key"], _known(region), tuple(negatives))
        for region, negatives in zip(example["regions"], false)
    )
    study = (example["modality"], example["view"], example["anatomy"])
    return ImageTexts(example["caption"], example["caption_key"], *study, tuple(regions))


def mirror_words(text: str) -> str:
    """`text` with the words left and right exchanged."""
    return _SIDE.sub(lambda found: _OTHER_SIDE[found.group()], text)


@lru_cache(maxsize=16384)
def mirror_statement(statement: Statement) -> Statement | None:
    """The statement of the mirrored image; None where the mirror image has no name, or another."""
    if _ONE_SIDED.search(bare_phrase(statement)):
        return None
    words = {
        name: mirror_words(value)
        for name in ("finding", "laterality", "place", "anatomy")
        if (value := getattr(statement, name)) is not None
    }
    mirrored = replace(statement, **words)
    return None if _ONE_SIDED.search(bare_phrase(mirrored)) else mirrored


@lru_cache(maxsize=8192)
def _count(known: tuple[Statement, ...]) -> tuple[tuple[Statement, str], ...]:
    """The statements of a caption of regions of which this is known, with their counts."""
    return tuple(count_statements([carry(statement) for statement in known]))


def _known(region: Mapping[str, Any]) -> Statement:
    values = {name: region[name] for name in _ATTRIBUTES}
    return state_region(RegionRecord((0.0, 0.0, 1.0, 1.0), region["finding"], **values))


def _mirror_region(region: RegionTexts) -> RegionTexts | None:
    known = mirror_statement(region.known)
    if known is None:
        return None
    text, key = region.text, region.key
    if key != statement_key(region.known):  # words of the source
        if _names_side(text):
            return None
    elif known != region.known:
        if text != _describe(region.known):
            return None
        text, key = _describe(known), statement_key(known)
    mirrored = (_mirror_negative(region.known, negative) for negative in region.negatives)
    return RegionTexts(text, key, known, tuple(negative for negative in mirrored if negative is not None))


@lru_cache(maxsize=16384)
def _mirror_negative(known: Statement, negative: NegativeText) -> NegativeText | None:
    """The negative of the mirrored region; None where it has none."""
    stated = read_negative(known, negative.text, negative.key)
    mirrored = None if stated is None else mirror_statement(stated)
    return None if mirrored is None else NegativeText(_describe(mirrored), statement_key(mirrored), negative.changed)


@lru_cache(maxsize=16384)
def _describe(statement: Statement) -> str:
    return describe_region(carry(statement))


def _names_side(text: str) -> bool:
    """Whether a text of unknown structure names a side, or what has no mirror image."""
    return bool(_NAMES_SIDE.search(text.lower()) or _ONE_SIDED.search(text.lower()))
