"""The arms of the study on real data: stages with and without hard negatives, fine-tuned in full and by LoRA."""

from __future__ import annotations

from typing import Any

Stage = dict[str, Any]  # as a recipe file has it
TOWERS = ("vision", "text")
NEGATIVES, REGION_TEXT = "hard_negatives", "region_text"  # terms
NEGATIVES_WEIGHT = 0.5  # of the term in a stage that does not name it
DEFAULT_RATE = 1e-3  # of a stage that names none


def without_negatives(stages: list[Stage]) -> list[Stage]:
    """The stages without the term of hard negatives; how many a region has is the recipe's to say."""
    changed = []
    for stage in stages:
        kept = {key: value for key, value in stage.items() if key != "num_negatives"}
        if "loss_weights" in stage:
            kept["loss_weights"] = {term: weight for term, weight in stage["loss_weights"].items() if term != NEGATIVES}
        changed.append(kept)
    return changed


def with_negatives(stages: list[Stage]) -> list[Stage]:
    """The stages, those that train region texts with the term of hard negatives.

    Raises:
        ValueError: no stage trains region texts.
    """
    changed = []
    for stage, bare in zip(stages, without_negatives(stages), strict=True):
        weights = stage.get("loss_weights", {})
        if REGION_TEXT in weights:
            added = {NEGATIVES: weights.get(NEGATIVES, NEGATIVES_WEIGHT)}
            bare = {**bare, "loss_weights": {**bare["loss_weights"], **added}}
        changed.append(bare)
    if changed == without_negatives(stages):
        raise ValueError(f"no stage of the recipe has the term {REGION_TEXT}, so hard negatives have no place in it.")
    return changed


def with_towers(stages: list[Stage], mode: str, lora_rate: float) -> list[Stage]:
    """The stages with every tower that they train, in full or by LoRA, trained by `mode` instead.

    Args:
        mode: "full" or "lora".
        lora_rate: how many times as high the learning rate of a tower is by LoRA.
    """
    return [_with_towers(stage, mode, lora_rate) for stage in stages]


def _with_towers(stage: Stage, mode: str, lora_rate: float) -> Stage:
    modes, rates = dict(stage.get("modes", {})), dict(stage.get("learning_rates", {}))
    for tower in TOWERS:
        given = modes.get(tower, "full")
        if given in ("frozen", mode):
            continue
        modes[tower] = mode
        rate = float(rates.get(tower, stage.get("learning_rate", DEFAULT_RATE)))
        rates[tower] = rate * lora_rate if mode == "lora" else rate / lora_rate
    changed = {**stage, "modes": modes, "learning_rates": rates}
    if mode == "full":
        changed.pop("lora", None)
    return changed
