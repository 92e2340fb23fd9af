"""Source `jsonl` as a source of corpora: bad rows are items, rows are indexed on disk, masks come by default."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all
from tiny_corpora import write_jsonl_source

from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.corpus_source import CorpusSource
from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.medregion import MedRegion
from regionmed_clip.processing.corpus.sources.jsonl import ABOUT, JsonlSource, open_jsonl, open_sources
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec


def rewrite(folder, change):
    """Applies `change` to the list of lines of the folder's annotations."""
    path = folder / "annotations.jsonl"
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def changed(line, **fields):
    return json.dumps(json.loads(line) | fields)


@pytest.fixture
def damaged_folder(tmp_path):
    """Ten rows of which 1, 2, 3, 5 and 6 are bad in different ways, and a line that is no row."""
    folder = write_jsonl_source(tmp_path / "demo", 10)
    (folder / "images/001.png").write_bytes(b"no image")
    (folder / "images/002.png").unlink()

    def damage(lines):
        lines[3] = changed(lines[3], boxes_xyxy=[[4, 1, 1, 5]])
        lines[5] = changed(lines[5], split="holdout")
        lines[6] = changed(lines[6], mask="nowhere.png")
        lines.append("{")
        lines.append(lines[7])

    rewrite(folder, damage)
    return folder


def test_bad_rows_become_items_that_name_file_and_line_and_the_good_ones_still_come(damaged_folder):
    (source,) = open_sources(damaged_folder)
    found = bad_items(source)
    told = {
        "images/001.png": ("annotations.jsonl:2: ", "cannot be decoded"),
        "images/002.png": ("annotations.jsonl:3: ", "does not exist"),
        "images/003.png": ("annotations.jsonl:4: ", "x1 must exceed x0"),
        "images/005.png": ("annotations.jsonl:6: ", "split is 'holdout'"),
        "images/006.png": ("annotations.jsonl:7: ", "'nowhere.png' does not exist"),
        "images/007.png": ("annotations.jsonl:12: ", "is already in line 8"),
        "annotations.jsonl:11": ("annotations.jsonl:11: ", "a line holds one JSON object"),
    }
    assert set(found) == set(told)
    for key, parts in told.items():
        assert all(part in found[key] for part in parts), found[key]
    good = [item.image_id for split in source.splits() for item in source.read(split) if not hasattr(item, "reason")]
    assert sorted(good) == [f"demo/images/00{index}.png" for index in (0, 4, 8, 9)]


def test_direct_reading_refuses_what_a_build_leaves_out(damaged_folder):
    with pytest.raises(ValueError, match=r"annotations.jsonl:6: .*split is 'holdout'"):
        JsonlSource(damaged_folder)
    (source,) = open_sources(damaged_folder)
    with pytest.raises(ValueError, match=r"annotations.jsonl:2: .*cannot be decoded"):
        list(source.records("train"))


def test_masks_are_read_unless_switched_off(tmp_path):
    folder = write_jsonl_source(tmp_path / "demo", 3)
    for options, has_mask in (({}, True), ({"masks": "true"}, True), ({"masks": "false"}, False)):
        (source,) = open_sources(folder, **options)
        (region,) = next(source.records("train")).regions
        assert (region.mask_rle is not None) is has_mask
    with pytest.raises(ValueError, match="masks is 'no'; it must be true or false"):
        open_sources(folder, masks="no")
    assert set(ABOUT.options) == {"masks"}


def test_boxes_are_those_painted_in_the_images(tmp_path):
    boxes_of_image = [[(0, 0, 7, 5), (10, 8, 40, 30)], [], [(3, 2, 4, 30)]]
    rows = []
    for index, boxes in enumerate(boxes_of_image):
        paint(tmp_path / f"images/{index}.png", (40, 30), boxes)
        row = {"image": f"images/{index}.png", "width": 40, "height": 30, "split": "test"}
        rows.append(json.dumps(row | {"boxes_xyxy": boxes, "labels": ["nodule"] * len(boxes)}))
    (tmp_path / "annotations.jsonl").write_text("\n".join(rows))
    (source,) = open_sources(tmp_path)
    for record, boxes in zip(source.records("test"), boxes_of_image, strict=True):
        assert [region.box for region in record.regions] == boxes
        assert [painted_box(record.image, index) for index in range(len(boxes))] == boxes


def write_fundus(folder, labels_of_image):
    """A jsonl folder of fundus photographs in which IDRiD's names are boxed."""
    rows = []
    for index, labels in enumerate(labels_of_image):
        boxes = [(12 * k, 5, 12 * k + 10, 25 - index) for k in range(len(labels))]
        paint(folder / f"images/{index}.png", (40, 30), boxes)
        row = {"image": f"images/{index}.png", "width": 40, "height": 30, "labels": labels}
        rows.append(json.dumps(row | {"boxes_xyxy": boxes, "modality": "fundus photograph"}) + "\n")
    (folder / "annotations.jsonl").write_text("".join(rows))
    return folder


def swaps_of(negatives):
    return {negative["text"] for negative in negatives if negative["changed"] == "finding"}


@pytest.mark.parametrize(
    ("labels_of_image", "looked_for", "swaps"),
    [
        ([["Hard Exudates (EX)"], []], {"hard exudate"}, [set(), set()]),
        (
            [["Hard Exudates (EX)"], ["Drusen"], ["hard exudate", "drusen"]],
            {"hard exudate", "drusen"},
            [
                {"drusen", "Fundus photograph with drusen."},
                {"hard exudate", "Fundus photograph with a hard exudate."},
                set(),
            ],
        ),
    ],
)
def test_findings_are_swapped_only_for_labels_of_the_source(labels_of_image, looked_for, swaps, tmp_path):
    indexes = tmp_path / "indexes"
    indexes.mkdir()
    for _ in range(2):  # the second finds what the first has kept
        (source,) = open_sources(write_fundus(tmp_path / "idrid", labels_of_image), index_folder=indexes)
        assert source.looked_for == looked_for
    examples = [example_from_record(r, looked_for=source.looked_for_in(r)) for r in read_all(source)]
    assert [swaps_of(example["negatives"]) for example in examples] == swaps
    assert {negative["changed"] for negative in examples[0]["negatives"]} >= {"negation"}


def test_a_row_that_is_refused_is_looked_for_by_nobody(tmp_path):
    folder = write_fundus(tmp_path / "idrid", [["hard exudate"], ["drusen"]])
    rewrite(folder, lambda lines: lines.append(changed(lines[1], labels=["cotton wool spot", 3], image="x.png")))
    assert open_sources(folder)[0].looked_for == {"hard exudate", "drusen"}


def test_a_build_and_a_stream_give_the_negatives_of_the_same_findings(tmp_path):
    folder = write_fundus(tmp_path / "idrid", [["hard exudate"], ["drusen"], ["cotton wool spot"], []])
    corpus = build_corpus(
        [parse_source_spec("jsonl", str(folder))], tmp_path / "out", num_processes=1, show_progress=False
    )
    built = {row["image_id"]: row["negatives"] for split in corpus.splits() for row in corpus.rows(split)}
    stream = MedRegion(config_name="jsonl", data_dir=str(folder), template_texts=True)
    examples = [example for split in corpus.splits() for example in stream.as_streaming_dataset(split=split)]
    assert {example["image_id"]: example["negatives"] for example in examples} == built
    assert {key[-5]: bool(swaps_of(found)) for key, found in built.items()} == {
        "0": True,
        "1": True,
        "2": True,
        "3": False,
    }
    assert CorpusSource(corpus.folder).looked_for == frozenset()


def test_the_index_is_kept_and_found_again_until_the_rows_change(tmp_path):
    folder, indexes = write_jsonl_source(tmp_path / "odd name #1?", 10), tmp_path / "indexes #1?"
    indexes.mkdir()
    (source,) = open_sources(folder, index_folder=indexes)
    (path,) = indexes.iterdir()
    written_at = path.stat().st_mtime_ns
    (again,) = open_sources(folder, index_folder=indexes)
    assert list(again.records("train")) == list(source.records("train"))
    assert path.stat().st_mtime_ns == written_at
    rewrite(folder, lambda lines: lines.pop(0))
    (other,) = open_sources(folder, index_folder=indexes)
    assert len(list(indexes.iterdir())) == 2
    assert next(other.records("train")).image_id.endswith("001.png")


def test_a_copy_outlives_the_source_and_a_pickled_one_reads_in_another_process(tmp_path):
    source = JsonlSource(write_jsonl_source(tmp_path / "demo", 4))
    expected = list(source.records("train"))
    sent = pickle.loads(pickle.dumps(source))  # noqa: S301  (as processes that are spawned get it)
    assert list(sent.records("train")) == expected
    copied = copy.deepcopy(source)
    del source
    assert list(copied.records("train")) == expected


def test_the_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for number in (3000, 9000):  # the cache of the index is full from some 2,000 rows on
        folder = tmp_path / str(number)
        folder.mkdir()
        row = '{"image": "images/%06d.png", "patient_id": "%06d", "labels": ["' + "long " * 50 + '"]}\n'
        (folder / "annotations.jsonl").write_text("".join(row % (index, index) for index in range(number)))
        tracemalloc.start()
        JsonlSource(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 6000 < 32, peaks  # bytes a row


def test_several_folders_are_several_sources(tmp_path):
    for name in ("b", "a"):
        write_jsonl_source(tmp_path / name, 2)
    assert [source.name for source in open_sources(tmp_path)] == ["a", "b"]
    assert [source.license for source in open_jsonl(tmp_path)] == ["CC0 1.0"] * 2


def test_rows_of_odd_types_and_names_are_bad_items_and_no_crash(tmp_path):
    folder = write_jsonl_source(tmp_path / "demo", 4)

    def damage(lines):
        lines[0] = changed(lines[0], split=["train"])
        lines[1] = changed(lines[1], image=f"images/{'x' * 300}.png")
        lines[2] = changed(lines[2], boxes_xyxy=[[0, 0, 10**400, 5]], labels=["mass"])
        lines.append("[" * 100_000)

    rewrite(folder, damage)
    (source,) = open_sources(folder)
    found = bad_items(source)
    assert set(found) == {"images/000.png", f"images/{'x' * 300}.png", "images/002.png", "annotations.jsonl:5"}
    assert "split is ['train']" in found["images/000.png"]
    assert "more than 255 bytes" in found[f"images/{'x' * 300}.png"]
    assert sum(source.num_records(split) for split in source.splits()) == 3
