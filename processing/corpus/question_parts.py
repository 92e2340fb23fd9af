"""The parts train, validation and test of data with questions, whatever splits its sources come in.

A split that the data lack is held out of "train", by image and by patient (question_split.py). Training and evaluation
both ask here, so that they agree about every image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from regionmed_clip.processing.corpus.data_spec import DataSpec, open_sources, parse_data_spec, stream_examples
from regionmed_clip.processing.corpus.fingerprints import Part, part_of_examples
from regionmed_clip.processing.corpus.question_split import groups_of_images, holdout_split
from regionmed_clip.processing.corpus.records import SPLITS

HELD_OUT_SHARES: Mapping[str, float] = {"validation": 0.15, "test": 0.2}
Shares = Mapping[str, float]


def plan_parts(splits: Collection[str]) -> dict[str, Shares]:
    """Stored split -> share of its images by part; a split that is a part as it is has the share 1 of it alone.

    Args:
        splits: that the data have, of `SPLITS`.

    Raises:
        ValueError: there is no "train" from which missing parts could be held out.
    """
    missing = [part for part in SPLITS if part not in splits and part != "train"]
    if missing and "train" not in splits:
        raise ValueError(
            f"The data have the splits {sorted(splits)} and no 'train', from which {' and '.join(missing)} could be "
            "held out. Give data with a training split."
        )
    plan: dict[str, Shares] = {split: {split: 1.0} for split in SPLITS if split in splits}
    if missing:
        held_out = {part: HELD_OUT_SHARES[part] for part in missing}
        plan["train"] = {"train": 1.0 - sum(held_out.values()), **held_out}
    return plan


def plan_of_data(spec: DataSpec) -> dict[str, Shares]:
    """The plan of a spec that is no mixture, by the splits that at least one of its sources has."""
    return plan_parts({split for source in open_sources(spec) for split in source.splits()})


def split_of_part(plan: Mapping[str, Shares], part: str) -> str:
    """The stored split in which a part lies; ValueError where it lies in none."""
    for split, shares in plan.items():
        if part in shares:
            return split
    raise ValueError(f"The data have no part {part!r}; they have {sorted({p for s in plan.values() for p in s})}.")


def parts_of_rows(images: Part, shares: Shares, seed: int = 0) -> list[str]:
    """The part of every image of a stored split: all of one part, or held out by groups; see `holdout_split`.

    Args:
        images: all images of the split, of `fingerprints.part_of_examples`.
    """
    if len(shares) == 1:
        return list(shares) * len(images.image_ids)
    return holdout_split(groups_of_images(images), shares, seed)


def stream_part(spec: DataSpec | str, part: str) -> Iterator[dict[str, Any]]:
    """The examples of a part, terms of a mixture one after the other, with their images still encoded.

    Where the part is held out of a stored split, that split is gone through twice.
    """
    whole = parse_data_spec(spec) if isinstance(spec, str) else spec
    for term, _ in whole.terms():
        plan = plan_of_data(term)
        split = split_of_part(plan, part)
        examples = stream_examples(term, split, decode_images=False, is_interleaved=False)
        if len(plan[split]) == 1:
            yield from examples
            continue
        decoded = stream_examples(term, split, is_interleaved=False)  # as training hashes them, to the last bit
        names = parts_of_rows(part_of_examples(split, decoded), plan[split])
        yield from (example for example, name in zip(examples, names, strict=True) if name == part)
