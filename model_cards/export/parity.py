"""How alike a graph and the model are: on pictures and texts of a corpus, at several sizes, and how fast either is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regionmed_clip.eval.search.corpus_rows import CorpusImages
from regionmed_clip.model_cards.export.graph_paths import GraphPath
from regionmed_clip.processing.corpus.captions import describe_region

Runner = Callable[[dict[str, Tensor]], Sequence[Tensor]]
NUM_IMAGES = 32
NUM_ROUNDS = 9  # of timing, eager and graphs by turns
BATCH = 8  # images, or texts, of a timed pass


@dataclass(frozen=True)
class ParityInputs:
    """Inputs of all paths, of real pictures: `tensors` by the names of the tensor contract, B images and T texts.

    `pictures` are the encoded images (bytes or paths) and `texts` the T texts that the tensors were made of.
    """

    tensors: dict[str, Tensor]
    pictures: list[Any]
    texts: list[str]
    source: str

    def of(self, path: type[GraphPath], first: int, stop: int) -> dict[str, Tensor]:
        """What a path takes, items [first, stop)."""
        return {name: self.tensors[name][first:stop] for name in path.inputs}

    def num_items(self, path: type[GraphPath]) -> int:
        """B or T."""
        return len(self.tensors[next(iter(path.inputs))])


def read_inputs(processor: Any, data: str, split: str) -> ParityInputs:
    """The first NUM_IMAGES images of a split with their boxes, and their captions and region texts.

    Raises:
        ValueError: as `CorpusImages`; none of the images has a region.
    """
    corpus = CorpusImages(data, split)
    records = [record for record in corpus.records(0, min(NUM_IMAGES, corpus.num_images)) if record.window is None]
    regions = [region for record in records for region in record.regions]
    if not regions:
        raise ValueError(f"none of the first {NUM_IMAGES} images of {data!r} has a region; give data with some.")
    texts = [record.caption for record in records] + [one.description or describe_region(one) for one in regions]
    texts = list(dict.fromkeys(texts))
    boxes = [[list(region.box) for region in record.regions] for record in records]
    pictures = [record.image for record in records]
    batch = processor(images=pictures, boxes=boxes, text=texts, window=None)  # as the program shows them
    tensors = {name: value for name, value in batch.items() if name != "region_coverage"}
    return ParityInputs(tensors, pictures, texts, f"{corpus.revision}, split {split}")


def largest_differences(path: type[GraphPath], eager: Runner, graph: Runner, inputs: ParityInputs) -> dict[str, float]:
    """Output -> the largest absolute difference between model and graph, at sizes 1, 2, 5 and all."""
    largest = dict.fromkeys(path.outputs, 0.0)
    total = inputs.num_items(path)
    for first, stop in ((0, 1), (1, 3), (3, 8), (0, total)):
        values = inputs.of(path, min(first, total - 1), min(stop, total))
        for name, wanted, found in zip(path.outputs, eager(values), graph(values), strict=True):
            if wanted.shape != found.shape:
                raise ValueError(f"{path.name}: {name} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}.")
            difference = float((wanted - found).abs().max())
            largest[name] = max(largest[name], difference if difference == difference else float("inf"))  # NaN
    return largest


def cosines(path: type[GraphPath], eager: Runner, graph: Runner, inputs: ParityInputs) -> dict[str, dict[str, float]]:
    """Output -> least and mean cosine between the model's and the graph's embeddings, padding left out."""
    values = inputs.of(path, 0, inputs.num_items(path))
    found: dict[str, dict[str, float]] = {}
    for name, wanted, given in zip(path.outputs, eager(values), graph(values), strict=True):
        if name.endswith("_embeds"):
            is_real = wanted.norm(dim=-1) > 0.5
            each = torch.nn.functional.cosine_similarity(wanted[is_real], given[is_real], dim=-1)
            found[name] = {"least": round(float(each.min()), 6), "mean": round(float(each.mean()), 6)}
    return found


def milliseconds(path: type[GraphPath], runners: dict[str, Runner], inputs: ParityInputs) -> dict[str, float]:
    """Runner -> median time of a pass over BATCH items, all runners timed by turns in this process."""
    values = inputs.of(path, 0, min(BATCH, inputs.num_items(path)))
    elapsed: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(NUM_ROUNDS + 1):
        for name, run in runners.items():
            started = time.perf_counter()
            run(values)
            if number:  # the first round warms up
                elapsed[name].append(time.perf_counter() - started)
    return {name: round(1000 * statistics.median(times), 3) for name, times in elapsed.items()}
