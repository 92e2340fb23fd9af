"""MedRegion, the corpus as a `datasets` builder: `MedRegion(config_name, ...).as_streaming_dataset(split=...)`.

Configs:
    phantom: procedural medical phantoms; options num_train, num_test, seed, difficulty.
    jsonl: a source folder, or a folder of source folders, given as data_dir.

`datasets` from version 4 on runs no loading scripts, so the builder is used as a class; under 3.6 the same file still
loads by `load_dataset(path_of_this_file)` (its scanner wants one import a line). The records come from the installed
package regionmed-clip, imported inside the methods.

An example iterated from the stream: `image` is a PIL image (with `decode_images=False` a dict of `bytes` and `path`);
`regions` and `qa` are lists of dicts; keys are Python ints. A streamed example is encoded by its features but not cast
through Arrow, so numbers are the record's own. The shards are contiguous blocks: read one after the other they give the
index order. Prefer the stream: what `download_and_prepare` keeps is found again by the folder's path, not its content.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

_STRING = datasets.Value("string")
_INT = datasets.Value("int64")
_REGION = {
    "box": datasets.Sequence(datasets.Value("float64"), length=4),  # x0, y0, x1, y1: original pixels, half-open
    "finding": _STRING,
    "anatomy": _STRING,
    "laterality": _STRING,  # the patient's side
    "place": _STRING,
    "size": _STRING,
    "severity": _STRING,
    "certainty": _STRING,
    "is_negated": datasets.Value("bool"),
    "text_origin": _STRING,
    "description": _STRING,
    "key": _INT,
    "mask": {"size": datasets.Sequence(_INT, length=2), "counts": datasets.Sequence(_INT)},  # run lengths; may be None
}


def corpus_features(decode_images: bool = True) -> datasets.Features:
    """The features of an example."""
    texts = ("modality", "anatomy", "view", "caption", "findings", "impression", "patient_id", "split")
    origin = ("source", "source_revision", "license", "sha256", "text_origin")
    return datasets.Features(
        {
            "image": datasets.Image(decode=decode_images),
            "image_id": _STRING,
            "width": _INT,
            "height": _INT,
            **dict.fromkeys((*texts, *origin), _STRING),
            "caption_key": _INT,
            "regions": [_REGION],
            "qa": [{"question": _STRING, "answer": _STRING, "kind": _STRING}],
        }
    )


@dataclass
class MedRegionConfig(datasets.BuilderConfig):
    """Options of the builder; the phantom options left None take the defaults of the phantom source."""

    num_train: int | None = None
    num_test: int | None = None
    seed: int | None = None
    difficulty: float | None = None
    with_masks: bool = False
    decode_images: bool = True
    num_blocks: int = 8


class MedRegion(datasets.GeneratorBasedBuilder):
    """The corpus as a `datasets` builder; see the head of this file."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = MedRegionConfig
    BUILDER_CONFIGS = [
        MedRegionConfig(name="phantom", description="procedural medical phantoms, drawn on the fly"),
        MedRegionConfig(name="jsonl", description="folders with annotations.jsonl and images/, given as data_dir"),
    ]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Region-annotated medical images with multi-level text.",
            features=corpus_features(self.config.decode_images),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        """One generator per split that any source has; its shards are contiguous blocks over all sources in order."""
        splits_module = _corpus_module("splits")
        sources = self._open_sources()
        generators = []
        for split in ("train", "validation", "test"):
            num_examples = sum(source.num_records(split) for source in sources if split in source.splits())
            if num_examples:
                blocks = splits_module.contiguous_blocks(num_examples, self.config.num_blocks)
                generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "blocks": blocks}))
        return generators

    def _generate_examples(self, split: str, blocks: list[tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position, example) of the given blocks of positions over all sources in order."""
        example_from_record = _corpus_module("examples").example_from_record
        sources = [source for source in self._open_sources() if split in source.splits()]
        for start, stop in blocks:
            position = 0  # of the source's first record
            for source in sources:
                num_records = source.num_records(split)
                first, last = max(start - position, 0), min(stop - position, num_records)
                if first < last:
                    for index, record in enumerate(source.records(split, first, last), start=position + first):
                        yield index, example_from_record(record)
                position += num_records

    def _open_sources(self) -> list[Any]:
        """The sources of the config, opened once per builder: they remember which images are verified."""
        if getattr(self, "_sources", None) is None:
            self._sources = _corpus_module("data_spec").open_sources(self._spec(), with_masks=self.config.with_masks)
        return self._sources

    def _spec(self) -> Any:
        """The config as a data spec; ValueError where options of one config are given to the other."""
        data_spec = _corpus_module("data_spec")
        given = {name: getattr(self.config, name) for name in data_spec.PHANTOM_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        if self.config.name == "phantom":
            return data_spec.parse_data_spec("phantom:" + ",".join(f"{name}={value}" for name, value in given.items()))
        if given or not self.config.data_dir:
            known = ", ".join(data_spec.PHANTOM_OPTIONS)
            raise ValueError(
                f"Config {self.config.name!r} got data_dir={self.config.data_dir!r} and options {given}; it takes a "
                f"data_dir and none of {known}, which belong to config 'phantom'. Correct the arguments."
            )
        return data_spec.DataSpec("jsonl", folder=str(self.config.data_dir))


def _corpus_module(name: str) -> Any:
    """A module of regionmed_clip.processing.corpus; ImportError says what to install if the package is absent."""
    try:
        return importlib.import_module(f"regionmed_clip.processing.corpus.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("regionmed_clip"):
            raise
        raise ImportError(
            "MedRegion reads its records with the package regionmed-clip: pip install regionmed-clip"
        ) from error
