"""The data contract: its generated blocks are what the code says, and what stands by hand is what builds write."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
from built_corpora import build, noise, write_source
from record_strategies import BOX, make_study

from regionmed_clip.processing.corpus import record_schema
from regionmed_clip.processing.corpus.contract_page import render_page
from regionmed_clip.processing.corpus.dataclass_schema import fields_of, json_schema, name_type
from regionmed_clip.processing.corpus.multi_level_text import write_texts
from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.records import (
    TEXT_LEVELS,
    MaskRle,
    NegativeRecord,
    QARecord,
    RegionRecord,
    StudyRecord,
    TextRecord,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data_contract.md"
SCHEMA = json_schema(StudyRecord, TextRecord, NegativeRecord)
NODULE = RegionRecord(BOX, "nodule", size="large", mask_rle=MaskRle((30, 40), (0, 5, 1195)))


def errors(value, schema, where="$"):
    """What breaks the parts of draft 2020-12 that the schema uses, as texts."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "anyOf" in schema:
        return [] if any(not errors(value, option) for option in schema["anyOf"]) else [f"{where}: no alternative fits"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r}"]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    kinds |= {"array": list, "object": dict}
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, kinds[name]) for name in names):
        return [f"{where}: {value!r} is no {names}"]
    found = []
    if isinstance(value, dict):
        found += [f"{where}: {name} is missing" for name in schema["required"] if name not in value]
        found += [f"{where}: {name} is unknown" for name in value if name not in schema["properties"]]
        for name in value.keys() & schema["properties"].keys():
            found += errors(value[name], schema["properties"][name], f"{where}.{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        parts = schema.get("prefixItems") or [schema["items"]] * len(value)
        for index, (item, part) in enumerate(zip(value, parts)):
            found += errors(item, part, f"{where}[{index}]")
    return found


def as_json(record):
    """A record as JSON gives it back."""
    return json.loads(json.dumps({**asdict(record), "image": "cG5n"} if hasattr(record, "image") else asdict(record)))


def keys_of_table(heading):
    """The names in the first column of the page's table under a heading, split at commas."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    cells = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return {name.strip("`[]") for cell in cells for name in cell[0].strip("| ").split(", ")}


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    command = "python -m regionmed_clip.processing.corpus.record_schema --write docs/data_contract.md"
    assert render_page(page) == page, f"run `{command}`"
    assert record_schema.main(["--check", str(PAGE)]) == 0


def test_a_stale_page_is_refused_and_written_anew(tmp_path, capsys):
    path = tmp_path / "page.md"
    page = PAGE.read_text(encoding="utf-8")
    path.write_text(page.replace("the patient's side, not the picture's", "the picture's side"), encoding="utf-8")
    assert record_schema.main(["--check", str(path)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert record_schema.main(["--write", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    "damage",
    [
        lambda page: page.replace("<!-- end: mask -->", ""),
        lambda page: page.replace("<!-- generated: mask -->", "<!-- generated: masks -->"),
        lambda page: page + "\n<!-- generated: mask -->\n<!-- end: mask -->\n",
    ],
)
def test_a_page_that_lost_a_marker_is_refused(damage, tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text(damage(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    assert record_schema.main(["--write", str(path)]) == 1
    assert "Restore the markers" in capsys.readouterr().err


def test_the_schema_is_printed(capsys):
    assert record_schema.main(["--print"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_records_fit_the_schema():
    record = make_study([NODULE], qa=(QARecord("Is it?", "yes", "closed"),), window=(-1350.0, 150.0))
    assert errors(as_json(record), SCHEMA) == []
    for text in write_texts(record):
        assert errors(as_json(text), SCHEMA["$defs"]["TextRecord"]) == []
    for negative in write_negatives(record):
        assert errors(as_json(negative), SCHEMA["$defs"]["NegativeRecord"]) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"split": "dev"}, "$.split: 'dev'"),
        ({"width": "40"}, "$.width: '40' is no ['integer']"),
        ({"window": (1.0,)}, "$.window: no alternative fits"),
        ({"regions": (replace(NODULE, size="huge"),)}, "$.regions[0].size: 'huge'"),
        ({"regions": (replace(NODULE, box=(0.0, 1.0)),)}, "$.regions[0].box: 2 items"),
        ({"caption": None}, "$.caption: None is no ['string']"),
    ],
)
def test_what_no_record_may_be_breaks_the_schema(change, error):
    assert errors(as_json(replace(make_study([NODULE]), **change)), SCHEMA) == [error]
    assert "$: sha256 is missing" in errors({"image_id": "a", "extra": 1}, SCHEMA)


def test_the_schema_names_every_field_of_every_record():
    classes = (StudyRecord, RegionRecord, QARecord, TextRecord, NegativeRecord, MaskRle)
    for record_class in classes:
        schema = SCHEMA if record_class is StudyRecord else SCHEMA["$defs"][record_class.__name__]
        assert list(schema["properties"]) == [field.name for field in fields(record_class)]
        assert all(value["description"] for value in schema["properties"].values())
    assert SCHEMA["$defs"]["RegionRecord"]["required"] == ["box", "finding"]
    assert SCHEMA["$defs"]["TextRecord"]["properties"]["level"]["enum"] == list(TEXT_LEVELS)


def test_types_are_told_in_words():
    words = {field.name: name_type(field) for field in [*fields_of(StudyRecord), *fields_of(RegionRecord)]}
    assert words["box"] == "4 numbers"
    assert words["window"] == "2 numbers or null"
    assert words["regions"] == "list of `RegionRecord`"
    assert words["laterality"] == "`left`, `right`, `bilateral` or null"
    assert words["image"] == "bytes or text"


def test_a_field_without_a_description_is_refused():

    bad = make_dataclass("Bad", [("known", Annotated[str, "what it is"]), ("unknown", str)])
    with pytest.raises(ValueError, match=r"Bad\.unknown has 0 descriptions"):
        fields_of(bad)


def test_the_tables_by_hand_name_what_a_build_writes(tmp_path):
    images = [noise(1), noise(2), noise(3), noise(1)]
    source = write_source(tmp_path / "demo", images)
    (source / "images" / "002.png").write_bytes(b"no image")
    corpus = build(tmp_path / "out", source)
    assert keys_of_table("### manifest.json") == set(corpus.manifest)
    described = re.findall(r"`(\w+)(?:\[\])?`", PAGE.read_text(encoding="utf-8").partition("### manifest.json")[2])
    entry = next(iter(corpus.manifest["splits"].values()))
    assert {*corpus.manifest["sources"][0], *entry, *entry["shards"][0]} <= set(described)
    lines = [(corpus.folder / f"{name}.jsonl").read_text().splitlines() for name in ("quarantine", "duplicates")]
    assert all(lines)
    keys = {key for part in lines for key in json.loads(part[0])}
    assert keys == {name.strip("`") for name in _second_column("### quarantine.jsonl and duplicates.jsonl")}


def _second_column(heading):
    """The names in the second column of the page's table under a heading."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    cells = [line.split(" | ")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    return [name for cell in cells for name in cell.split(", ")]
