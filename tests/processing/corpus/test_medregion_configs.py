"""The builder's other configs: every source by name, and jsonl folders with and without the package."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
from corpus_fixtures import paint
from tiny_corpora import write_jsonl_source

from regionmed_clip.processing.corpus import medregion
from regionmed_clip.processing.corpus.medregion import MedRegion
from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource
from regionmed_clip.processing.corpus.sources.registry import SOURCE_NAMES


@pytest.fixture
def source_folder(tmp_path):
    return write_jsonl_source(tmp_path / "demo", 11)


@pytest.fixture
def without_package(monkeypatch):
    """As if the package were not installed."""

    def missing(name):
        raise ModuleNotFoundError("No module named 'regionmed_clip'", name="regionmed_clip")

    monkeypatch.setattr(medregion, "importlib", SimpleNamespace(import_module=missing))


def jsonl(folder, split="train", **options):
    return MedRegion(config_name="jsonl", data_dir=str(folder), **options).as_streaming_dataset(split=split)


def ids(examples):
    return [example["image_id"] for example in examples]


def test_every_source_has_a_config_of_its_name():
    assert {config.name for config in MedRegion.BUILDER_CONFIGS} == {"corpus", *SOURCE_NAMES}
    assert set(medregion.PUBLIC_SOURCES) == set(SOURCE_NAMES) - {"phantom", "jsonl"}


def test_a_public_source_is_read_in_its_own_layout(tmp_path):
    paint(tmp_path / "a.png", (40, 30), [(5, 6, 15, 16)])
    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 6, 10, 10], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "nodule"}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(annotations))
    builder = MedRegion(config_name="coco", data_dir=str(tmp_path), options={"annotations": "instances_train.json"})
    (example,) = builder.as_streaming_dataset(split="train")
    assert example["regions"][0]["box"] == [5.0, 6.0, 15.0, 16.0]
    assert example["regions"][0]["finding"] == "nodule"
    with pytest.raises(ValueError, match="'annotation=x' is no option of coco"):
        MedRegion(config_name="coco", data_dir=str(tmp_path), options={"annotation": "x"}).as_streaming_dataset()


def test_a_broken_row_stops_the_stream_that_a_build_would_leave_out(tmp_path):
    (tmp_path / "instances_train.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match="A built corpus leaves bad items out"):
        MedRegion(config_name="coco", data_dir=str(tmp_path)).as_streaming_dataset(split="train")


def test_sources_say_what_to_install_where_the_package_is_missing(tmp_path, without_package):
    for name, place in (("phantom", {}), ("vindr_cxr", {"data_dir": str(tmp_path)})):
        with pytest.raises(ImportError, match="needs the package regionmed-clip for this: pip install regionmed-clip"):
            MedRegion(config_name=name, **place).as_streaming_dataset(split="train")
    with pytest.raises(ImportError, match="pip install regionmed-clip"):
        jsonl(tmp_path, template_texts=True)


def test_a_jsonl_folder_is_read_without_the_package_too_with_a_warning(source_folder, without_package):
    with pytest.warns(UserWarning, match="texts by template are left out: MedRegion needs the package"):
        examples = list(jsonl(source_folder, "test"))
    assert ids(examples) == [f"demo/images/{index:03d}.png" for index in (7, 8, 9, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(jsonl(source_folder, "test", template_texts=False)) == ids(examples)
    with pytest.raises(ValueError, match="with_masks=True needs texts by template too"):
        jsonl(source_folder, template_texts=False, with_masks=True)


def test_what_rows_say_themselves_is_the_same_with_and_without_the_package(source_folder):
    plain, worded = list(jsonl(source_folder, template_texts=False)), list(jsonl(source_folder, template_texts=True))
    told = "image_id width height split patient_id source source_revision license sha256 modality qa window".split()
    for one, other in zip(plain, worded, strict=True):
        assert {name: one[name] for name in told} == {name: other[name] for name in told}
        assert one["image"].tobytes() == other["image"].tobytes()
        for bare, described in zip(one["regions"], other["regions"], strict=True):
            assert (bare["box"], bare["finding"]) == (described["box"], described["finding"])
            assert (bare["description"], bare["key"]) == ("", None)
        assert (one["caption"], one["caption_key"], one["texts"]) == ("", None, [])
        assert other["caption"] == "B-mode ultrasound with a nerve."


@pytest.mark.parametrize(
    "rows",
    [
        [{"split": "val"}, {"split": None}, {"split": "train"}, {"split": "test"}],
        [{"patient_id": name} for name in ("a", "b", None, "c", "a", "c", "b", "d", "", "a")],
        [{"split": "train"}] * 10,
        [{}],
    ],
)
def test_splits_without_the_package_are_those_of_the_source(tmp_path, rows):
    folder = write_jsonl_source(tmp_path / "demo", len(rows))
    lines = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]
    changed = [line | {"patient_id": None} | row for line, row in zip(lines, rows)]
    (folder / "annotations.jsonl").write_text("\n\n".join(json.dumps(line) for line in changed))
    source = JsonlSource(folder)
    builder = MedRegion(config_name="jsonl", data_dir=str(folder), template_texts=False, columns=["image_id"])
    found = {split: ids(stream) for split, stream in builder.as_streaming_dataset().items()}
    assert found == {split: [record.image_id for record in source.records(split)] for split in source.splits()}


def test_a_caption_of_the_row_comes_without_the_package(tmp_path):
    folder = write_jsonl_source(tmp_path / "demo", 2, caption="A neck.")
    assert next(iter(jsonl(folder, template_texts=False)))["caption"] == "A neck."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "1 boxes and 0 labels"),
        ({"image": "../secret.png"}, "is no file within"),
        ({"labels": [3]}, "correct the row or drop it"),
        ({"width": None}, "correct the row or drop it"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_without_the_package(source_folder, change, message):
    lines = (source_folder / "annotations.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    (source_folder / "annotations.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"annotations.jsonl:3: .*{message}"):
        list(jsonl(source_folder, template_texts=False))


def test_a_line_without_json_is_named_without_the_package(source_folder):
    with (source_folder / "annotations.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"annotations.jsonl:12: no JSON object"):
        jsonl(source_folder, template_texts=False)


def test_options_of_other_configs_are_refused(source_folder):
    for name, options in (
        ("corpus", {"template_texts": True}),
        ("corpus", {"num_train": 3}),
        ("jsonl", {"options": {"a": "b"}}),
        ("coco", {"difficulty": 0.5}),
    ):
        with pytest.raises(ValueError, match=f"Config '{name}' got data_dir"):
            MedRegion(config_name=name, data_dir=str(source_folder), **options).as_streaming_dataset()
    with pytest.raises(ValueError, match="it takes no data_dir"):
        MedRegion(config_name="phantom", data_dir=str(source_folder)).as_streaming_dataset()
