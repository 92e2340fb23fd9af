"""What the loss terms of a recipe need of the data and of the model's grid, checked before any training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modeling_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY

from .arguments import Recipe

CAPTION_TERMS = ("image_text", "fused_image_text")
REGION_TEXT_TERMS = ("region_text", "image_region_text")
LEAST_PATCHES = 1.5  # sides of a drawn box: its embedding mixes whole patches


def refuse_missing_texts(recipe: Recipe, text_keys: Iterable[tuple[int, Sequence[int]]]) -> None:
    """Raises a ValueError for a term that would compare images with texts which the training split has not.

    Args:
        text_keys: (key of the caption, keys of the regions' texts) of the training samples; read as far as needed.
    """
    needs = {"caption": CAPTION_TERMS, "region text": REGION_TEXT_TERMS}
    missing = {kind for kind, terms in needs.items() if not recipe.loss_terms.isdisjoint(terms)}
    samples = iter(text_keys)
    while missing and (sample := next(samples, None)) is not None:
        caption_key, region_keys = sample
        if caption_key != NO_TEXT_KEY:
            missing.discard("caption")
        if any(key != NO_TEXT_KEY for key in region_keys):
            missing.discard("region text")
    for stage in recipe.stages:
        for kind in sorted(missing):
            for term in needs[kind]:
                if term in stage.loss_weights:
                    raise ValueError(
                        f"recipe {recipe.name!r}: stage {stage.name!r} has the term {term!r}, and no image of the "
                        f"training split of {recipe.data} has a {kind} (one that says only what kind of image it is "
                        "does not count). Leave the term out; region_distillation needs images alone."
                    )


def refuse_small_boxes(recipe: Recipe, config: RegionMedClipConfig) -> None:
    """Raises a ValueError if `distillation` could draw boxes narrower than a patch and a half."""
    least = LEAST_PATCHES / config.grid_size
    if "region_distillation" in recipe.loss_terms and recipe.distillation.min_side < least:
        raise ValueError(
            f"recipe {recipe.name!r}: distillation.min_side is {recipe.distillation.min_side}; with {config.grid_size} "
            f"patches a side it must be at least {least:.4f}, a patch and a half. Raise it, or image_size."
        )
