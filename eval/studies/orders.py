"""Training orders: the stages of every arm of the study, made of a recipe's own stages, all with equal steps.

A recipe's first stage is called its global one here, its last the joint one, those between them the region stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Stage = dict[str, Any]  # as a recipe file has it
Stages = list[Stage]

THREE_STAGES, GLOBAL_ONLY = "three_stages", "global_only"
FINAL_SHARE = "final_learning_rate_share"
HARD_NEGATIVES = "hard_negatives"
REGION_TEXTS = "image_region_text"  # the term: an image's region texts as further positives of its global embedding
TERM_KEYS = (  # what a stage trains and on what; its other keys say when and how fast
    *("loss_weights", "loss_kinds", "modes", "lora", "adapters"),
    *("num_negatives", "similarity_filter", "max_regions", "box_noise"),
)


def global_only(stages: Stages) -> Stages:
    """Image-text alone at every step, both towers in full: plain-clip."""
    plain = {"loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}, "adapters": "drop"}
    return [{**_without(stage, ("loss_kinds",)), **plain} for stage in stages]


def joint(stages: Stages) -> Stages:
    """The last stage's terms at every step, at the learning rates that the recipe has there."""
    terms = {key: value for key, value in stages[-1].items() if key in TERM_KEYS}
    return [{**_without(stage, TERM_KEYS), **terms} for stage in stages]


def joint_then_hard_negatives(stages: Stages) -> Stages:
    """The last stage's terms at every step, hard negatives there alone: the order of recipes/quickstart.yaml."""
    return [*_without_term(joint(stages)[:-1], HARD_NEGATIVES), stages[-1]]


def without_global(stages: Stages) -> Stages:
    """The recipe without its first stage."""
    return _share_out(stages, stages[1:])


def without_region(stages: Stages) -> Stages:
    """The recipe's first and last stage."""
    return _share_out(stages, [stages[0], stages[-1]])


def without_joint(stages: Stages) -> Stages:
    """The recipe without its last stage, down to whose share of the learning rate the stage before it goes instead.

    An arm that never came down to a low rate would be beaten for that, whatever its stages are.
    """
    (*earlier, region), last = stages[:-1], stages[-1]
    ended = {key: last[key] for key in (FINAL_SHARE,) if key in last}
    return _share_out(stages, [*earlier, {**_without(region, (FINAL_SHARE,)), **ended}])


def without_region_texts(stages: Stages) -> Stages:
    """The stages without the term of region texts as further positives of the global embedding."""
    return _without_term(stages, REGION_TEXTS)


ARMS: dict[str, Callable[[Stages], Stages]] = {  # of equal ones the first gives the name
    THREE_STAGES: list,
    GLOBAL_ONLY: global_only,
    "joint": joint,
    "joint_then_hard_negatives": joint_then_hard_negatives,
    "region_then_joint": without_global,
    "without_global": without_global,
    "without_region": without_region,
    "without_joint": without_joint,
    "three_stages_without_region_texts": without_region_texts,
    "joint_without_region_texts": lambda stages: without_region_texts(joint(stages)),
}


def list_arms(stages: Stages, names: Iterable[str] = tuple(ARMS)) -> tuple[dict[str, Stages], dict[str, str]]:
    """(the stages of each arm by name, the arms that are another one by another name: name -> that one's).

    Raises:
        ValueError: for a recipe whose stages cannot be told apart or counted.
    """
    check_stages(stages)
    arms: dict[str, Stages] = {}
    same: dict[str, str] = {}
    for name in dict.fromkeys(names):
        made = ARMS[name](stages)
        twin = next((other for other, its in arms.items() if _is_same(its, made)), None)
        if twin is None:
            arms[name] = made
        else:
            same[name] = twin
    return arms, same


def check_stages(stages: Stages) -> None:
    """None; a ValueError where the arms cannot be made of the stages."""
    if len(stages) < 3:
        raise ValueError(
            f"the recipe has {len(stages)} stage(s); the study needs at least three, a global, a region and a joint "
            "one, in this order. Name another one by --recipe."
        )
    for stage in stages:
        if not isinstance(stage.get("steps"), int):
            raise ValueError(
                f"stage {stage.get('name')!r} has steps {stage.get('steps')!r}; arms of equal steps need a whole "
                "number of steps in every stage, no epochs. Write the steps into the recipe."
            )


def num_steps(stages: Sequence[Stage]) -> int:
    """Steps of all stages together."""
    return sum(stage["steps"] for stage in stages)


def _share_out(stages: Stages, kept: Stages) -> Stages:
    """The kept stages with the steps of the left-out ones, in proportion to their own; the sum stays the same.

    The arm's first stage warms up at least as long as the recipe's first: both begin with random weights.
    """
    total, own = num_steps(stages), num_steps(kept)
    steps = [stage["steps"] * total // own for stage in kept]
    remainders = [stage["steps"] * total % own for stage in kept]
    for place in sorted(range(len(kept)), key=lambda place: (-remainders[place], place))[: total - sum(steps)]:
        steps[place] += 1
    shared = [{**stage, "steps": number} for stage, number in zip(kept, steps, strict=True)]
    warmup = max(kept[0].get("warmup_steps", 0), stages[0].get("warmup_steps", 0))
    if warmup:
        shared[0]["warmup_steps"] = min(warmup, steps[0] - 1)
    return shared


def _without_term(stages: Stages, term: str) -> Stages:
    """The stages without one loss term, their numbers of steps unchanged."""
    changed = []
    for stage in stages:
        kept = {**stage}
        for key in ("loss_weights", "loss_kinds"):
            if key in stage:
                kept[key] = _without(stage[key], (term,))
        if not kept.get("loss_weights", True):
            raise ValueError(
                f"stage {stage['name']!r} has no term but {term}, so the study cannot leave it out; leave the arms "
                "without it out (--arms), or give that stage another term."
            )
        changed.append(kept)
    return changed


def _is_same(first: Stages, second: Stages) -> bool:
    """Whether two arms train alike; names of stages decide nothing."""
    return [_without(stage, ("name",)) for stage in first] == [_without(stage, ("name",)) for stage in second]


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The values but those of the keys."""
    return {key: value for key, value in values.items() if key not in keys}
