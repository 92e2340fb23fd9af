"""MedRegion, the corpus as a `datasets` builder in one file: `MedRegion(NAME, ...).as_streaming_dataset(split=...)`.

Configs, by NAME:
    corpus: a folder that `regionmed-corpus build` has written, given as data_dir. Needs nothing but `datasets`.
    jsonl: a source folder, or a folder of source folders, given as data_dir. With the package regionmed-clip missing
        texts are written by template; without it, or with template_texts=False, the rows' own texts and labels come.
    phantom: procedural medical phantoms; options num_train, num_test, num_validation, seed, difficulty. Needs
        the package.
    coco, voc, vindr_cxr ...: a public source as data_dir, its options as options={...}; see `regionmed-corpus list`.
        Needs the package.

`datasets` from version 4 on runs no loading scripts, so the builder is used as a class. Under 3.6 the same file still
loads as a script, in an environment of its own (the scanner of 3.6 wants one import a line):

    python3 -m venv venv36 && venv36/bin/pip install "datasets==3.6.*" pillow pyarrow
    load_dataset("PATH/medregion.py", "corpus", data_dir="FOLDER", trust_remote_code=True, streaming=True)

REGIONMED_DATASETS36_PYTHON=venv36/bin/python lets tests/processing/corpus/test_medregion_36.py prove it.

An example: `image` is a PIL image as stored (with decode_images=False a dict of `bytes` and `path`), `window` the range
of stored values to be shown (None: all); `regions`, `qa`, `texts` and `negatives` are lists of dicts; keys are Python
ints. `columns` names the columns that are read: without "image" no image is touched. A streamed example is encoded by
its features but not cast through Arrow. The shards are the files of the corpus, else contiguous blocks: one after the
other they give the order of the rows, and a stream resumes by its state_dict with the very next row. Prefer the stream:
what `download_and_prepare` keeps is found again by the folder's path, not its content.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

SPLITS = ("train", "validation", "test")
PHANTOM_OPTIONS = ("num_train", "num_test", "num_validation", "seed", "difficulty")
PUBLIC_SOURCES = (  # the other names of sources/registry.py, which is imported only where one is asked for
    "coco voc yolo mask_folder vindr_cxr rsna_pneumonia nih_bbox ms_cxr chest_imagenome padchest_gr deeplesion slake "
    "vqa_rad rocov2 medtrinity"
).split()
FORMAT = 1  # of the manifest
ANNOTATIONS_NAME = "annotations.jsonl"
_MASK_LEAVES = "regions.list.element.mask."  # as Parquet names them

_STRING = datasets.Value("string")
_INT = datasets.Value("int64")
_REGION = {
    "box": datasets.Sequence(datasets.Value("float64"), length=4),  # x0, y0, x1, y1: original pixels, half-open
    **dict.fromkeys(("finding", "anatomy", "laterality", "place", "size", "severity", "certainty"), _STRING),
    "is_negated": datasets.Value("bool"),
    "text_origin": _STRING,
    "description": _STRING,
    "key": _INT,
    "mask": {"size": datasets.Sequence(_INT, length=2), "counts": datasets.Sequence(_INT)},  # run lengths; may be None
}
_TOPIC_OF_NAME = {"pres": "presence", "abn": "abnormality", "pos": "position", "attrib": "attribute"}
_TOPIC_OF_NAME["atrib"] = "attribute"  # sic, in VQA-RAD
_TEXT = {"level": _STRING, "region": _INT, "text": _STRING, "key": _INT, "origin": _STRING}
_NEGATIVE = {"region": _INT, "text": _STRING, "key": _INT, "changed": _STRING}
_FEATURES = {
    "image_id": _STRING,
    "width": _INT,
    "height": _INT,
    **dict.fromkeys(("modality", "anatomy", "view", "caption", "findings", "impression", "patient_id"), _STRING),
    **dict.fromkeys(("split", "source", "source_revision", "license", "sha256", "text_origin"), _STRING),
    "window": datasets.Sequence(datasets.Value("float64"), length=2),  # low, high in stored values; may be None
    "phash": _STRING,
    "caption_key": _INT,
    "regions": [_REGION],
    "qa": [{"question": _STRING, "answer": _STRING, "kind": _STRING}],
    "texts": [_TEXT],  # region: which of `regions`, None for the image
    "negatives": [_NEGATIVE],
}


def corpus_features(decode_images: bool = True, columns: list[str] | None = None) -> datasets.Features:
    """The features of an example, or of the given columns of it."""
    features = {"image": datasets.Image(decode=decode_images), **_FEATURES}
    unknown = [name for name in columns or () if name not in features]
    if unknown or columns == []:
        raise ValueError(f"columns has {unknown or 'no name'}; the columns are {', '.join(features)}. Name some.")
    return datasets.Features({name: features[name] for name in columns or features})


def corpus_schema() -> Any:
    """The pyarrow schema of a shard; its note for `datasets` is written so that 3.6 and later versions both read it."""
    schema = corpus_features().arrow_schema
    note = {"info": {"features": _as_3_6_wrote(corpus_features().to_dict())}}
    return schema.with_metadata({"huggingface": json.dumps(note)})


def _as_3_6_wrote(feature: Any) -> Any:
    """A feature as a dict, lists in the form of `datasets` 3.6: [feature] for dicts, "Sequence" for numbers."""
    if not isinstance(feature, dict):
        return [_as_3_6_wrote(item) for item in feature] if isinstance(feature, list) else feature
    if feature.get("_type") == "List":
        inner = _as_3_6_wrote(feature["feature"])
        return {**feature, "feature": inner, "_type": "Sequence"} if "_type" in inner else [inner]
    return {name: _as_3_6_wrote(value) for name, value in feature.items()}


@dataclass
class MedRegionConfig(datasets.BuilderConfig):
    """Options of the builder; see the head of this file."""

    columns: list[str] | None = None  # names of the columns to read; None: all
    decode_images: bool = True  # else bytes and path
    with_masks: bool | None = None  # None: for a corpus, not for jsonl, where they are files of their own
    template_texts: bool | None = None  # jsonl: write missing texts by template; None: if the package is there
    num_blocks: int = 8  # number of shards of what is not stored in shards
    num_train: int | None = None  # this and the next four: of config phantom
    num_test: int | None = None
    num_validation: int | None = None
    seed: int | None = None
    difficulty: float | None = None
    options: dict[str, str] | None = None  # of a public source, texts by name


class MedRegion(datasets.GeneratorBasedBuilder):
    """The corpus as a `datasets` builder; see the head of this file."""

    VERSION = datasets.Version("2.0.0")
    BUILDER_CONFIG_CLASS = MedRegionConfig
    BUILDER_CONFIGS = [
        MedRegionConfig(name="corpus", description="a folder built by regionmed-corpus, given as data_dir"),
        MedRegionConfig(name="jsonl", description="folders with annotations.jsonl and images/, given as data_dir"),
        MedRegionConfig(name="phantom", description="procedural medical phantoms, drawn on the fly"),
        *(MedRegionConfig(name=name, description="a public source, given as data_dir") for name in PUBLIC_SOURCES),
    ]

    def __init__(self, config_name: str | None = None, cache_dir: str | None = None, **options: Any) -> None:
        super().__init__(cache_dir=cache_dir, config_name=config_name, **options)  # the library puts cache_dir first

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Region-annotated medical images with multi-level text.",
            features=corpus_features(self.config.decode_images, self.config.columns),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        """One generator per split that has any row; a list of shards is what `datasets` deals out and resumes by."""
        reader = self._reader()
        found = [{"split": split, "shards": reader.shards(split)} for split in SPLITS]
        return [datasets.SplitGenerator(name=given["split"], gen_kwargs=given) for given in found if given["shards"]]

    def _generate_examples(self, split: str, shards: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, example) of every row of the given shards."""
        reader, wanted = self._reader(), list(self.info.features)
        for shard in shards:
            for row, example in enumerate(reader.examples(split, shard)):
                yield f"{shard}:{row}", {name: example[name] for name in wanted}

    def _reader(self) -> Any:
        """What reads the config's data, opened once per builder."""
        if getattr(self, "_opened", None) is None:
            self._check_options()
            self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        config = self.config
        if config.name == "corpus":
            return _BuiltCorpus(Path(config.data_dir), config.columns, config.with_masks is not False)
        if config.name == "jsonl" and not self._has_template_texts():
            if config.with_masks:
                raise ValueError("with_masks=True needs texts by template too: both are the package's. Drop one.")
            return _PlainJsonl(Path(config.data_dir), list(self.info.features), config.num_blocks)
        if config.name == "jsonl":
            open_jsonl = _corpus_module("sources.jsonl").open_jsonl
            sources = open_jsonl(config.data_dir, with_masks=bool(config.with_masks))
        elif config.name == "phantom":
            given = {name: getattr(config, name) for name in PHANTOM_OPTIONS}
            given = {name: value for name, value in given.items() if value is not None}
            sources = [_corpus_module("sources.phantom").PhantomSource(**given)]
        else:
            registry = _corpus_module("sources.registry")
            options = ",".join(f"{name}={value}" for name, value in (config.options or {}).items())
            spec = registry.parse_source_spec(f"{config.name}:{options}", str(config.data_dir))
            sources = registry.open_sources_of(spec)
        return _PackageSources(sources, config.num_blocks)

    def _has_template_texts(self) -> bool:
        """Whether a jsonl folder is read by the package, which writes missing texts; warns where it is absent."""
        if self.config.template_texts is not None:
            return self.config.template_texts
        try:
            _corpus_module("sources.jsonl")
        except ImportError as error:
            warnings.warn(f"texts by template are left out: {error}. template_texts=False says so too.", stacklevel=2)
            return False
        return True

    def _check_options(self) -> None:
        """Nothing; raises ValueError where options of one config are given to another."""
        config = self.config
        given = {name: getattr(config, name) for name in (*PHANTOM_OPTIONS, "options", "template_texts")}
        given = {name: value for name, value in given.items() if value is not None}
        own = {"phantom": PHANTOM_OPTIONS, "jsonl": ("template_texts",), "corpus": ()}.get(config.name, ("options",))
        is_drawn = config.name == "phantom"
        if bool(config.data_dir) is is_drawn or not set(given) <= set(own):
            takes = "no data_dir" if is_drawn else f"a data_dir and none of {', '.join(PHANTOM_OPTIONS)}"
            raise ValueError(
                f"Config {config.name!r} got data_dir={config.data_dir!r} and options {given}; it takes {takes}. "
                f"Options of its own: {', '.join(own) or 'none'}. Correct the arguments."
            )


class _BuiltCorpus:
    """Rows of a built corpus by shard; of a column that is not asked for, no byte is read."""

    def __init__(self, folder: Path, columns: list[str] | None, with_masks: bool) -> None:
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no manifest.json; data_dir is a folder that regionmed-corpus has built.")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found = manifest["format"]
            splits = manifest["splits"].items() if found == FORMAT else ()
            shards = {split: [str(folder / shard["path"]) for shard in entry["shards"]] for split, entry in splits}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no whole manifest ({error!r}). Copy or build the corpus again.") from error
        if found != FORMAT:
            raise ValueError(f"{path} has format {found!r}; this file reads {FORMAT}. Build it again.")
        self._shards, self._columns, self._with_masks = shards, columns, with_masks

    def shards(self, split: str) -> list[str]:
        """The Parquet files of the split."""
        return self._shards.get(split, [])

    def examples(self, split: str, shard: str) -> Iterator[dict[str, Any]]:
        """The rows of a shard in order; one row group is in memory. ValueError names a shard that cannot be read."""
        try:
            yield from self._rows(shard)
        except (OSError, ValueError) as error:  # those of pyarrow, which do not name the file
            raise ValueError(f"{shard} cannot be read: {error}. `regionmed-corpus check` looks at all.") from error

    def _rows(self, shard: str) -> Iterator[dict[str, Any]]:
        wanted = set(self._columns or ("image", *_FEATURES))
        with pq.ParquetFile(shard) as file:
            leaves = [file.schema.column(k).path for k in range(len(file.schema))]
            leaves = [leaf for leaf in leaves if leaf.partition(".")[0] in wanted]
            missing = wanted - {leaf.partition(".")[0] for leaf in leaves}
            if missing:
                raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}; build the corpus again")
            if not self._with_masks:
                leaves = [leaf for leaf in leaves if not leaf.startswith(_MASK_LEAVES)]
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group, columns=leaves).to_pylist():
                    for region in () if self._with_masks else row.get("regions", ()):
                        region["mask"] = None
                    yield row


class _PackageSources:
    """Records of sources of the package, one source after the other, in contiguous blocks of positions."""

    def __init__(self, sources: list[Any], num_blocks: int) -> None:
        self._sources, self._num_blocks = sources, num_blocks
        self._example_from_record = _corpus_module("examples").example_from_record
        for bad in (item for source in sources for item in source.bad_items()):
            raise ValueError(f"{bad.source}: {bad.key}: {bad.reason} A built corpus leaves bad items out.")

    def shards(self, split: str) -> list[tuple[int, int]]:
        """Ranges [start, stop) of positions over all sources."""
        number = sum(source.num_records(split) for source in self._sources if split in source.splits())
        return _blocks(number, self._num_blocks)

    def examples(self, split: str, shard: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """The examples at the positions of a block."""
        position = 0  # of the source's first record
        for source in self._sources:
            if split not in source.splits():
                continue
            num_records = source.num_records(split)
            first, last = max(shard[0] - position, 0), min(shard[1] - position, num_records)
            if first < last:
                for record in source.records(split, first, last):
                    yield self._example_from_record(record, looked_for=source.looked_for_in(record))
            position += num_records


class _PlainJsonl:
    """Rows of jsonl folders as they stand: their own texts and labels, no text by template, no keys, no masks."""

    def __init__(self, folder: Path, columns: list[str], num_blocks: int) -> None:
        is_source = (folder / ANNOTATIONS_NAME).is_file()
        self._folders = [folder] if is_source else sorted(p.parent for p in folder.glob(f"*/{ANNOTATIONS_NAME}"))
        if not self._folders:
            raise ValueError(f"{str(folder)!r} holds no {ANNOTATIONS_NAME}, nor does a folder in it. Check data_dir.")
        self._columns, self._num_blocks = columns, num_blocks
        self._lines = {split: array("q") for split in SPLITS}  # folder, line, offset of every row
        self._facts = [self._index(number) for number in range(len(self._folders))]

    def shards(self, split: str) -> list[tuple[int, int]]:
        """Ranges [start, stop) of positions over all folders."""
        return _blocks(len(self._lines[split]) // 3, self._num_blocks)

    def examples(self, split: str, shard: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """The examples at the positions of a block; ValueError names file and line of a bad row."""
        for position in range(*shard):
            folder, line, offset = self._lines[split][3 * position : 3 * position + 3]
            path = self._folders[folder] / ANNOTATIONS_NAME
            with path.open("rb") as file:
                file.seek(offset)
                row = json.loads(file.readline())
            try:
                example = self._example(row, split, folder)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ValueError(f"{path}:{line}: {error!r}; correct the row or drop it.") from error
            yield example

    def _index(self, number: int) -> dict[str, str]:
        """Revision, licence and modality of a folder; on the way it notes where the rows of each split stand."""
        path, digest, rows = self._folders[number] / ANNOTATIONS_NAME, hashlib.sha256(), []
        offset = 0
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                digest.update(raw)
                if raw.strip():
                    try:
                        row = json.loads(raw)
                        rows.append((line, offset, row.get("split"), row.get("patient_id")))
                    except (ValueError, AttributeError) as error:
                        raise ValueError(f"{path}:{line}: no JSON object ({error}). Write it again.") from error
                offset += len(raw)
        for (line, start, _, _), split in zip(rows, _splits_of(path, rows)):
            self._lines[split].extend((number, line, start))
        notes, facts = path.with_name("SOURCE.md"), {"source_revision": digest.hexdigest()[:12]}
        about = notes.read_text(encoding="utf-8") if notes.is_file() else ""
        for name, pattern in (("license", "Licen[cs]e"), ("modality", "Modality")):
            match = re.search(rf"^- {pattern}:\s*([^,;(\n]+)", about, re.MULTILINE)
            facts[name] = match.group(1).strip() if match else "unknown"
        return facts

    def _example(self, row: dict[str, Any], split: str, folder: int) -> dict[str, Any]:
        """The example of a row; what the row does not say is None, an empty text or an empty list."""
        root, caption = self._folders[folder], row.get("caption") or ""
        path = (root / row["image"]).resolve()
        if not path.is_relative_to(root.resolve()) or not path.is_file():
            raise ValueError(f"{row['image']!r} is no file within {root}")
        boxes, labels = row.get("boxes_xyxy") or [], row.get("labels") or []
        if len(boxes) != len(labels) or any(len(box) != 4 for box in boxes):
            raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; every box has four numbers and a label")
        patient_id, facts, is_hashed = row.get("patient_id"), self._facts[folder], "sha256" in self._columns
        return {
            **dict.fromkeys(self._columns),
            **facts,
            "modality": row.get("modality") or facts["modality"],
            "findings": "",
            "impression": "",
            "image": {"path": str(path), "bytes": None},
            "image_id": f"{root.resolve().name}/{row['image']}",
            "width": int(row["width"]),
            "height": int(row["height"]),
            "caption": caption,
            "patient_id": None if patient_id in (None, "") else str(patient_id),
            "split": split,
            "source": root.resolve().name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest() if is_hashed else None,
            "text_origin": "source",
            "regions": [_plain_region(box, label) for box, label in zip(boxes, labels)],
            "qa": [{"question": p["q"], "answer": p["a"], "kind": _kind(p)} for p in row.get("qa") or []],
            "texts": [],
            "negatives": [],
        }


def _plain_region(box: list[float], label: str) -> dict[str, Any]:
    """A region of which box and finding alone are known."""
    known = {"box": [float(value) for value in box], "finding": " ".join(label.lower().split())}
    return {**dict.fromkeys(_REGION), "is_negated": False, "text_origin": "source", "description": "", **known}


def _kind(pair: dict[str, str]) -> str:
    """The kind of a question: the row's own, else told by the answer; and its topic, as question_rows.py names it."""
    is_closed = pair["a"].strip().lower() in ("yes", "no")
    answer_type = str(pair.get("answer_type") or ("closed" if is_closed else "open")).strip().lower()
    if answer_type.partition("-")[0] not in ("open", "closed"):
        raise ValueError(f"answer_type is {pair['answer_type']!r}; it must be open or closed, or begin so. Correct it.")
    name = re.search("[a-z]+", str(pair.get("question_type") or "").lower())
    return f"{answer_type}-{_TOPIC_OF_NAME.get(name.group(), name.group())}" if name else answer_type


def _splits_of(path: Path, rows: list[tuple[int, int, str | None, Any]]) -> Iterator[str]:
    """The split of each (line, offset, own split, patient), by the rule of splits.SplitsInOrder."""
    names = {"train": "train", "test": "test", **dict.fromkeys(("val", "dev", "validation"), "validation")}
    for line, _, own, _ in rows:
        if own is not None and str(own) not in names:
            raise ValueError(f"{path}:{line}: split is {own!r}; it must be one of {', '.join(names)}. Rename it.")
    has_held_out = any(own not in (None, "train") for _, _, own, _ in rows)
    for number, (_, _, own, patient) in enumerate(rows):
        if has_held_out:
            yield names[own or "train"]
        elif patient not in (None, ""):
            yield _split_by_hash(str(patient) if ":" in str(patient) else f"{path.parent.resolve().name}:{patient}")
        else:
            yield "train" if number < len(rows) * 70 // 100 else "test"


def _split_by_hash(patient_key: str) -> str:
    """The split of a patient, 80 % train, 10 % validation, 10 % test, by the rule of splits.split_by_hash."""
    digest = hashlib.blake2b(patient_key.encode(), digest_size=8).digest()
    ticket = int.from_bytes(digest, "big") / 2**64 * 100
    return "test" if ticket < 10 else "validation" if ticket < 20 else "train"


def _blocks(num_items: int, num_blocks: int) -> list[tuple[int, int]]:
    """At most `num_blocks` ranges [start, stop) that cover 0..num_items in order; sizes differ by at most one."""
    if num_blocks < 1:
        raise ValueError(f"num_blocks is {num_blocks}; it must be at least 1. Leave it out for 8.")
    number = min(num_items, num_blocks)
    return [(num_items * k // number, num_items * (k + 1) // number) for k in range(number)]


def _corpus_module(name: str) -> Any:
    """A module of regionmed_clip.processing.corpus; ImportError says what to install if the package is absent."""
    try:
        return importlib.import_module(f"regionmed_clip.processing.corpus.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("regionmed_clip"):
            raise
        raise ImportError("MedRegion needs the package regionmed-clip for this: pip install regionmed-clip") from error
