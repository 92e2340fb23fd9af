"""What the loss terms of a recipe need of the data and of the model's grid, checked before any training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from modeling_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY

from .arguments import Recipe
from .recipe_parts import Stage

NEEDS = {  # terms by the kind of text that they compare with
    "caption": ("image_text", "fused_image_text"),
    "region text": ("region_text", "image_region_text", "hard_negatives"),
}
LEAST_PATCHES = 1.5  # sides of a drawn box: its embedding mixes whole patches


class HasTextKeys(Protocol):
    """Training samples of which the keys of their texts can be read; see `SampleStore`."""

    def text_keys(self) -> Iterable[tuple[int, Sequence[int]]]:
        """(key of the caption, keys of the regions' texts) of every sample."""
        ...


def refuse_missing_texts(recipe: Recipe, stores: Mapping[str, HasTextKeys]) -> None:
    """Raises a ValueError for a term that would compare images with texts which the stage's training split has not.

    Args:
        stores: of the training samples by the stage's name; read as far as needed.
    """
    for stage in recipe.stages:
        missing = _find_missing(stage, stores[stage.name].text_keys())
        for kind in sorted(missing):
            for term in NEEDS[kind]:
                if term in stage.loss_weights:
                    raise ValueError(
                        f"recipe {recipe.name!r}: stage {stage.name!r} has the term {term!r}, and no image of the "
                        f"training split of {stage.data or recipe.data} has a {kind} (one that says only what kind of "
                        "image it is does not count). Leave the term out; region_distillation needs images alone."
                    )


def _find_missing(stage: Stage, text_keys: Iterable[tuple[int, Sequence[int]]]) -> set[str]:
    """Kinds of text that the stage's terms need and no sample has."""
    missing = {kind for kind, terms in NEEDS.items() if not set(terms).isdisjoint(stage.loss_weights)}
    samples = iter(text_keys)
    while missing and (sample := next(samples, None)) is not None:
        caption_key, region_keys = sample
        if caption_key != NO_TEXT_KEY:
            missing.discard("caption")
        if any(key != NO_TEXT_KEY for key in region_keys):
            missing.discard("region text")
    return missing


def refuse_odd_sizes(recipe: Recipe, config: RegionMedClipConfig) -> None:
    """Raises a ValueError for a stage whose frames are no whole number of patches wide."""
    patch_size = config.vision_config.patch_size
    for stage in recipe.settled().stages:
        if stage.image_size % patch_size:
            below = max(stage.image_size // patch_size, 1) * patch_size
            raise ValueError(
                f"recipe {recipe.name!r}: stage {stage.name!r} has image_size {stage.image_size}; patches of "
                f"{patch_size} pixels must fill it exactly, so set it to {below} or {below + patch_size}."
            )


def refuse_small_boxes(recipe: Recipe, config: RegionMedClipConfig) -> None:
    """Raises a ValueError if `distillation` could draw boxes narrower than a patch and a half."""
    for stage in recipe.settled().stages:
        grid_size = stage.image_size // config.vision_config.patch_size
        least = LEAST_PATCHES / grid_size
        if "region_distillation" in stage.loss_weights and recipe.distillation.min_side < least:
            raise ValueError(
                f"recipe {recipe.name!r}: distillation.min_side is {recipe.distillation.min_side}; with {grid_size} "
                f"patches a side, as stage {stage.name!r} has, it must be at least {least:.4f}, a patch and a half. "
                "Raise it, or image_size."
            )
