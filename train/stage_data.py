"""The training data of a recipe's stages: checked, prepared and opened, each at the stage's own size of frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modeling_regionmed_clip import RegionMedClipConfig
from regionmed_clip.processing.corpus.data_spec import parse_data_spec, stream_examples
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .arguments import Recipe
from .data_stores import SampleStore, open_data, prepare_data

TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class TrainingData:
    """The training split of the recipe's own data at its own size, and of each stage by the stage's name."""

    store: SampleStore
    stores: dict[str, SampleStore]

    def texts(self) -> Iterator[str]:
        """Every text of the recipe's data, then those of stages with data of their own; some may repeat."""
        read = [self.store]
        yield from self.store.texts()
        for store in self.stores.values():
            if store not in read:
                read.append(store)
                yield from store.texts()


def check_splits(recipe: Recipe) -> None:
    """Fails before any work if data lack the split that training or the evaluation needs."""
    needed = [(recipe.data, TRAINING_SPLIT), (recipe.data, recipe.evaluation.split)]
    needed += [(stage.data, TRAINING_SPLIT) for stage in recipe.stages]
    for data, split in dict.fromkeys(needed):
        try:
            stream_examples(parse_data_spec(data), split)
        except ValueError as error:
            raise ValueError(
                f"recipe {recipe.name!r}: {error} A recipe trains on {TRAINING_SPLIT!r} and evaluates on "
                f"{recipe.evaluation.split!r}; evaluate on another split by evaluation.split=NAME."
            ) from error


def build_image_processor(recipe: Recipe, config: RegionMedClipConfig) -> RegionMedClipImageProcessor:
    """Frames of the recipe's size for a model without a checkpoint's own image processor."""
    size = {"height": recipe.image_size, "width": recipe.image_size}
    return RegionMedClipImageProcessor(size=size, patch_size=config.vision_config.patch_size)


def prepare_training_data(recipe: Recipe, cache: Path, image_processor: RegionMedClipImageProcessor) -> None:
    """Writes to `cache` the frames of all stages and of the recipe's own data, where they are missing.

    Args:
        image_processor: of the recipe's own size.
    """
    for data, image_size in _distinct(recipe):
        sized = at_size(image_processor, image_size)
        prepare_data(parse_data_spec(data), TRAINING_SPLIT, cache, sized, recipe.preparation_workers)


def open_training_data(recipe: Recipe, cache: Path, image_processor: RegionMedClipImageProcessor) -> TrainingData:
    """What `prepare_training_data` wrote; stages of the same data and size share one store."""
    stores = {
        (data, image_size): open_data(
            parse_data_spec(data), TRAINING_SPLIT, cache, at_size(image_processor, image_size)
        )
        for data, image_size in _distinct(recipe)
    }
    by_stage = {stage.name: stores[stage.data, stage.image_size] for stage in recipe.stages}
    return TrainingData(stores[recipe.data, recipe.image_size], by_stage)


def _distinct(recipe: Recipe) -> list[tuple[str, int]]:
    """The (data, size of frames) pairs of a settled recipe, its own first."""
    pairs = [(recipe.data, recipe.image_size), *((stage.data, stage.image_size) for stage in recipe.stages)]
    return list(dict.fromkeys(pairs))


def at_size(image_processor: RegionMedClipImageProcessor, image_size: int) -> RegionMedClipImageProcessor:
    """The image processor with square frames of that many pixels a side."""
    settings = {**image_processor.to_dict(), "size": {"height": image_size, "width": image_size}}
    return RegionMedClipImageProcessor.from_dict(settings)
