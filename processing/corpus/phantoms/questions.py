"""Questions and answers about a phantom, written from its regions; closed ones have as many "yes" as "no" on average.

Kinds: closed-presence, closed-side, open-count, open-side, open-place, open-size, open-severity, open-modality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from regionmed_clip.processing.corpus.grammar import counted, is_mass_noun, plural
from regionmed_clip.processing.corpus.phantoms.canvas import Dice
from regionmed_clip.processing.corpus.phantoms.findings import Meaning, Modality
from regionmed_clip.processing.corpus.records import QARecord

_SHARE_ABNORMAL = 0.78  # of the images, see `study.py`
_YES_GIVEN_ABNORMAL = 0.5 / _SHARE_ABNORMAL  # a normal image can only answer "no"; this makes up for it


def write_questions(dice: Dice, modality: Modality, meanings: Sequence[Meaning]) -> tuple[QARecord, ...]:
    """Questions whose answers follow from the regions' `meanings`; two for a normal image and up to nine otherwise."""
    counts = Counter(meaning.finding for meaning in meanings)
    questions = [
        QARecord("What kind of image is this?", modality.name, "open-modality"),
        QARecord("How many findings does this image show?", str(len(meanings)), "open-count"),
        _ask_presence(dice, modality, counts),
    ]
    countable = [finding for finding in modality.findings if not is_mass_noun(finding)]
    asked = countable[dice.below(len(countable))]
    if meanings and counts[asked] == 0 and dice.chance(0.6):
        asked = next((finding for finding in counts if finding in countable), asked)
    questions.append(QARecord(f"How many {plural(asked)} are visible?", str(counts[asked]), "open-count"))
    single = [meaning for meaning in meanings if counts[meaning.finding] == 1]
    if single:
        questions += _ask_attributes(dice, single[dice.below(len(single))])
    return tuple(questions)


def _ask_presence(dice: Dice, modality: Modality, counts: Counter[str]) -> QARecord:
    """A question whether one finding is there: one that is, or another one of this modality that is not."""
    present = list(counts)
    absent = [finding for finding in modality.findings if finding not in counts]
    is_yes = bool(present) and dice.chance(_YES_GIVEN_ABNORMAL)
    choices = present if is_yes else absent
    finding = choices[dice.below(len(choices))]
    return QARecord(
        f"Does this image show {counted('', finding, 'one')}?", "yes" if is_yes else "no", "closed-presence"
    )


def _ask_attributes(dice: Dice, meaning: Meaning) -> list[QARecord]:
    """Questions on the side, place, size and severity of a finding that occurs once, as far as they are stated."""
    name = meaning.finding
    questions = []
    if meaning.laterality is not None:
        asked = ("left", "right")[dice.below(2)]
        answer = "yes" if asked == meaning.laterality else "no"
        if meaning.anatomy == "retina":
            questions.append(QARecord("Is this a right or a left eye?", meaning.laterality, "open-side"))
            questions.append(QARecord(f"Is this a {asked} eye?", answer, "closed-side"))
        else:
            questions.append(QARecord(f"On which side of the patient is the {name}?", meaning.laterality, "open-side"))
            questions.append(QARecord(f"Is the {name} on the patient's {asked} side?", answer, "closed-side"))
    if meaning.place is not None:
        questions.append(QARecord(f"Where is the {name}?", meaning.place, "open-place"))
    if meaning.size is not None:
        questions.append(QARecord(f"How large is the {name}?", meaning.size, "open-size"))
    if meaning.severity is not None:
        questions.append(QARecord(f"How severe is the {name}?", meaning.severity, "open-severity"))
    return questions
