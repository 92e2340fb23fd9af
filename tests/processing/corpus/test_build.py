"""Building a corpus: complete, shuffled, the same bytes however it was built, and honest about what it left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.processing.corpus import build as build_module
from regionmed_clip.processing.corpus.build import WORK_FOLDER, build_corpus
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.shard_writer import ROWS_OF_GROUP, plan_shards
from regionmed_clip.processing.corpus.sources.jsonl import open_jsonl
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec

PHANTOM = parse_source_spec("phantom:num_train=40,num_test=10", None)


def noise(seed, size=(24, 20)):
    """A small picture that is near to no other."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)


def write_source(folder, images, **fields_of_row):
    """A jsonl source with a row per (name, pixels) and a box in each; gives the folder back."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, pixels in images:
        Image.fromarray(pixels).save(folder / "images" / name)
        height, width = pixels.shape[:2]
        row = {"image": f"images/{name}", "width": width, "height": height}
        row |= {"boxes_xyxy": [[1, 2, 11, 12], [0, 0, width, height]], "labels": ["cyst", "nodule"], "qa": None}
        rows.append(row | {key: value[name] for key, value in fields_of_row.items() if name in value})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def many(number):
    return [(f"{k:04d}.png", noise(k)) for k in range(number)]


def build(root, out, **options):
    specs = [parse_source_spec("jsonl", str(folder)) for folder in (root if isinstance(root, list) else [root])]
    return build_corpus(specs, out, num_processes=1, show_progress=False, **options)


def digest_of(folder):
    """Name -> sha256 of every file under the folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ids(corpus, split):
    return [row["image_id"] for row in corpus.rows(split, columns=["image_id"])]


def quarantined(corpus):
    return [json.loads(line) for line in (corpus.folder / "quarantine.jsonl").read_text().splitlines()]


def test_every_record_is_in_the_corpus_with_its_own_bytes_and_boxes(tmp_path):
    root = write_source(tmp_path / "demo", many(30))
    corpus = build(root, tmp_path / "out")
    (source,) = open_jsonl(root)
    records = {record.image_id: record for split in source.splits() for record in source.records(split)}
    rows = [row for split in corpus.splits() for row in corpus.rows(split)]
    assert sorted(row["image_id"] for row in rows) == sorted(records)
    for row in rows:
        record = records[row["image_id"]]
        assert row["image"]["bytes"] == Path(record.image).read_bytes()
        assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest()
        assert [tuple(region["box"]) for region in row["regions"]] == [region.box for region in record.regions]
        assert row["split"] == record.split
        assert len(row["phash"]) == 80
    assert corpus.manifest["splits"]["train"]["num_images"] == 21
    assert corpus.manifest["sources"][0]["num_regions"] == 60
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


def test_the_order_is_shuffled_over_the_whole_split(tmp_path):
    corpus = build(write_source(tmp_path / "demo", many(100)), tmp_path / "out")
    found = ids(corpus, "train")
    assert found != sorted(found)
    places = np.argsort(np.argsort(found))
    assert np.abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.35
    other = build(tmp_path / "demo", tmp_path / "other", seed=1)
    assert ids(other, "train") != found
    assert sorted(ids(other, "train")) == sorted(found)


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    for number in (1, 2):
        build_corpus([PHANTOM], tmp_path / str(number), num_processes=number, show_progress=False)
    assert digest_of(tmp_path / "1") == digest_of(tmp_path / "2")


BUILD_PROGRAM = """
import sys
from regionmed_clip.processing.corpus import scan, build
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec
if __name__ == "__main__":
    spec = parse_source_spec("jsonl", sys.argv[1])
    build.build_corpus([spec], sys.argv[2], num_processes=2, show_progress=False)
"""


def test_a_build_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    root = write_source(tmp_path / "demo", many(1800))
    program = tmp_path / "program.py"
    program.write_text(BUILD_PROGRAM)
    command = [sys.executable, str(program), str(root)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    work = tmp_path / "out" / WORK_FOLDER
    signs = [work / "plan.json", work / "scan/000001.npy", work / "order-train.npy"]
    for sign in signs:
        process = subprocess.Popen([*command, str(tmp_path / "out")], start_new_session=True)
        while not sign.exists() and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, f"the build had ended before {sign.name} was there"
        os.kill(process.pid, signal.SIGKILL)  # its workers must notice by themselves
        process.wait()
        with pytest.raises(ValueError, match="interrupted build"):
            BuiltCorpus(tmp_path / "out")
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    assert digest_of(tmp_path / "out") == digest_of(tmp_path / "whole")


def test_a_bad_item_goes_to_quarantine_and_the_rest_go_on(tmp_path):
    root = write_source(tmp_path / "demo", many(6))
    (root / "images/0002.png").write_bytes(b"no image")
    rows = (root / "annotations.jsonl").read_text().splitlines()
    rows[4] = rows[4].replace("[1, 2, 11, 12]", "[11, 2, 1, 12]")
    rows[5] = rows[5][:-20]
    (root / "annotations.jsonl").write_text("\n".join(rows))
    corpus = build(root, tmp_path / "out")
    assert sum(corpus.num_images(split) for split in corpus.splits()) == 3
    reasons = {line["item"]: line["reason"] for line in quarantined(corpus)}
    assert len(reasons) == 3
    assert "cannot be decoded" in reasons["images/0002.png"]
    assert "x1 must exceed x0" in reasons["images/0004.png"]
    assert any("no JSON" in reason for reason in reasons.values())
    assert corpus.manifest["sources"][0]["num_quarantined"] == 3


def test_strict_stops_at_the_first_bad_item_until_it_is_corrected(tmp_path):
    root = write_source(tmp_path / "demo", many(3))
    (root / "images/0001.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"0001\.png"):
            build(root, tmp_path / "out", strict=True)
    Image.fromarray(noise(1)).save(root / "images/0001.png")
    assert build(root, tmp_path / "out", strict=True).manifest["sources"][0]["num_images"] == 3


def test_strict_refuses_a_finished_corpus_with_bad_items(tmp_path):
    root = write_source(tmp_path / "demo", many(3))
    (root / "images/0001.png").write_bytes(b"no image")
    build(root, tmp_path / "out")
    with pytest.raises(ValueError, match="without 1 bad items"):
        build(root, tmp_path / "out", strict=True)


def test_the_quarantine_file_is_the_same_in_every_build_and_withholds_personal_data(tmp_path):
    root = write_source(tmp_path / "demo", many(4), split={"0003.png": "Seen by Dr. Quirk on 03/12/2011"})
    (root / "images/0001.png").write_bytes(b"no image")  # Pillow's message holds an address in memory
    texts = []
    for out in ("first", "second"):
        subprocess.run(
            [
                *(sys.executable, "-m", "regionmed_clip.processing.corpus.command_line", "build", "--source", "jsonl"),
                *("--root", str(root), "--out", str(tmp_path / out), "--num-processes", "1"),
            ],
            check=True,
            capture_output=True,
        )
        texts.append((tmp_path / out / "quarantine.jsonl").read_text())
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 2
    assert "Quirk" not in texts[0]
    assert "03/12" not in texts[0]
    assert "must be one of train" in texts[0]


def test_a_text_that_is_no_unicode_is_quarantined(tmp_path):
    root = write_source(tmp_path / "demo", many(3), caption={"0001.png": "an \ud800 opacity"})
    corpus = build(root, tmp_path / "out")
    assert [line["item"] for line in quarantined(corpus)] == ["images/0001.png"]
    assert "surrogate" in quarantined(corpus)[0]["reason"]


def test_a_file_name_that_is_no_unicode_is_quarantined(tmp_path):
    for name in (b"a.png", b"b.png", b"c\xff.png"):
        for folder in ("images", "masks"):
            (tmp_path / "demo" / folder).mkdir(parents=True, exist_ok=True)
            pixels = noise(name[0]) if folder == "images" else np.pad(np.full((6, 8), 255, np.uint8), 7)
            with open(os.fsencode(tmp_path / "demo" / folder) + b"/" + name, "wb") as file:
                Image.fromarray(pixels[:20, :22]).save(file, "PNG")
    spec = parse_source_spec("mask_folder:layout=pairs,finding=polyp", str(tmp_path / "demo"))
    corpus = build_corpus([spec], tmp_path / "out", num_processes=1, show_progress=False)
    assert sum(corpus.num_images(split) for split in corpus.splits()) == 2
    assert [line["item"] for line in quarantined(corpus)] == ["images/c\\udcff"]


def test_a_folder_used_again_in_one_process_holds_the_new_corpus(tmp_path):
    build(write_source(tmp_path / "old", many(4)), tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    images = [(f"{k}.png", noise(100 + k)) for k in range(4)]
    corpus = build(write_source(tmp_path / "new", images), tmp_path / "out")
    assert sorted(name for split in corpus.splits() for name in ids(corpus, split)) == [
        f"new/images/{k}.png" for k in range(4)
    ]


def test_two_builds_do_not_write_one_folder(tmp_path):
    root = write_source(tmp_path / "demo", many(4))
    work = tmp_path / "out" / WORK_FOLDER
    work.mkdir(parents=True)
    with build_module._alone(work), pytest.raises(ValueError, match="built by another process"):
        build(root, tmp_path / "out")
    assert build(root, tmp_path / "out").splits() == ("train", "test")


def test_annotations_that_change_during_the_build_are_noticed(tmp_path, monkeypatch):
    write_source(tmp_path / "demo", many(2))
    box = "<object><name>cyst</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    (tmp_path / "voc/JPEGImages").mkdir(parents=True)
    (tmp_path / "voc/Annotations").mkdir()
    size = "<size><width>24</width><height>20</height><depth>1</depth></size>"
    annotation = tmp_path / "voc/Annotations/a.xml"
    annotation.write_text(f"<annotation><filename>a.png</filename>{size}{box}</annotation>")
    Image.fromarray(noise(1)).save(tmp_path / "voc/JPEGImages/a.png")
    spec = parse_source_spec("voc", str(tmp_path / "voc"))
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "decide", stop)
        with pytest.raises(InterruptedError):
            build_corpus([spec], tmp_path / "out", num_processes=1, show_progress=False)
    annotation.write_text(annotation.read_text().replace("<xmin>2", "<xmin>4"))
    with pytest.raises(ValueError, match="interrupted build with other sources"):
        build_corpus([spec], tmp_path / "out", num_processes=1, show_progress=False)


KILLED_PROGRAM = """
import os, sys
from pathlib import Path
from regionmed_clip.processing.corpus import build, scan
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec

root, out, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spec = parse_source_spec("jsonl", root)
scan.ITEMS_OF_CHUNK = 16
rename = Path.rename

def killed_at(number):
    done = 0
    def counted(path, target):
        nonlocal done
        done += 1
        if done == number:
            os.kill(os.getpid(), 9)
        return rename(path, target)
    return counted

for number in range(1, last + 1):
    if os.fork() == 0:
        Path.rename = killed_at(number)
        build.build_corpus([spec], out / str(number), num_processes=1, show_progress=False)
        os._exit(0)
    os.wait()
    build.build_corpus([spec], out / str(number), num_processes=1, show_progress=False)
"""


def test_a_build_killed_before_any_file_gets_its_name_ends_with_the_same_bytes(tmp_path):
    root = write_source(tmp_path / "demo", many(40))
    (root / "images/0003.png").write_bytes(b"no image")
    shutil.copy(root / "images/0005.png", root / "images/0006.png")
    (tmp_path / "program.py").write_text(KILLED_PROGRAM)
    subprocess.run([sys.executable, tmp_path / "program.py", root, tmp_path, "32"], check=True)
    last = digest_of(tmp_path / "32")  # which has fewer renames, so that no kill came
    assert all(digest_of(tmp_path / str(number)) == last for number in range(1, 32))


def test_equal_images_are_dropped_and_told_even_between_sources(tmp_path):
    first = write_source(tmp_path / "first", [("a.png", noise(1)), ("b.png", noise(2)), ("c.png", noise(1))])
    second = write_source(tmp_path / "second", [("d.png", noise(2)), ("e.png", noise(3))])
    corpus = build([first, second], tmp_path / "out")
    found = {image_id for split in corpus.splits() for image_id in ids(corpus, split)}
    assert found == {"first/images/a.png", "first/images/b.png", "second/images/e.png"}
    told = [json.loads(line) for line in (corpus.folder / "duplicates.jsonl").read_text().splitlines()]
    assert {(line["kind"], line["image"], line["duplicate"], line["is_dropped"]) for line in told} == {
        ("exact", "first/images/a.png", "first/images/c.png", True),
        ("exact", "first/images/b.png", "second/images/d.png", True),
    }
    assert [source["num_exact_duplicates"] for source in corpus.manifest["sources"]] == [1, 1]


def test_near_copies_share_a_split_or_go_on_demand(tmp_path):
    picture = np.asarray(Image.fromarray(noise(7)).resize((240, 200), Image.Resampling.BICUBIC))
    lighter = np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8)
    images = [("a.png", picture), ("b.png", lighter), ("c.png", noise(8))]
    root = write_source(tmp_path / "demo", images, split={"a.png": "train", "b.png": "test", "c.png": "train"})
    corpus = build(root, tmp_path / "out")
    assert set(ids(corpus, "test")) == {"demo/images/a.png", "demo/images/b.png"}
    assert corpus.manifest["num_near_duplicates"] == 1
    assert corpus.manifest["num_moved_to_another_split"] == 1
    assert {row["split"] for row in corpus.rows("test")} == {"test"}
    assert corpus.manifest["sources"][0]["num_near_dropped"] == 0
    dropped = build(root, tmp_path / "dropped", drop_near=True)
    assert ids(dropped, "test") == ["demo/images/a.png"]
    assert dropped.manifest["sources"][0]["num_near_dropped"] == 1


def test_a_finished_build_is_recognised_and_another_one_refused(tmp_path):
    root = write_source(tmp_path / "demo", many(8))
    corpus = build(root, tmp_path / "out")
    before = digest_of(tmp_path / "out")
    assert build(root, tmp_path / "out").revision == corpus.revision
    assert digest_of(tmp_path / "out") == before
    with pytest.raises(ValueError, match="another folder"):
        build(root, tmp_path / "out", seed=3)
    with (root / "annotations.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="another folder"):
        build(root, tmp_path / "out")
    assert digest_of(tmp_path / "out") == before


def test_another_number_of_phantoms_is_another_build(tmp_path):
    def build_phantoms(number):
        spec = parse_source_spec(f"phantom:num_train={number},num_test=0", None)
        return build_corpus([spec], tmp_path / "out", num_processes=1, show_progress=False)

    assert build_phantoms(6).manifest["sources"][0]["options"] == {"num_train": "6", "num_test": "0"}
    with pytest.raises(ValueError, match="another folder"):
        build_phantoms(7)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        build_corpus([PHANTOM], tmp_path / "out", show_progress=False)


def test_two_sources_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="each name once"):
        build_corpus([PHANTOM, PHANTOM], tmp_path / "out", show_progress=False)


def test_a_file_that_changes_during_the_build_is_noticed(tmp_path, monkeypatch):
    root = write_source(tmp_path / "demo", many(4))
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "decide", stop)
        with pytest.raises(InterruptedError):
            build(root, tmp_path / "out")
    Image.fromarray(noise(99)).save(root / "images/0001.png")
    with pytest.raises(ValueError, match="has changed during the build"):
        build(root, tmp_path / "out")


def stop(*arguments, **options):
    raise InterruptedError


def test_rows_are_read_by_position_over_shards_and_row_groups(tmp_path):
    corpus = build_corpus(
        [parse_source_spec("phantom:num_train=700,num_test=0", None)], tmp_path / "out", show_progress=False
    )
    assert len(corpus.shard_paths("train")) == 3
    found = ids(corpus, "train")
    assert len(found) == 700
    for start, stop in ((0, 1), (60, 70), (230, 240), (690, 700), (0, 700), (5, 5), (699, 10_000)):
        rows = corpus.rows("train", start, stop, ["image_id"])
        assert [row["image_id"] for row in rows] == found[start:stop]
    assert max(table.num_rows for table in corpus.tables("train", columns=["image_id"])) == ROWS_OF_GROUP


@pytest.mark.parametrize(
    ("num_images", "num_bytes", "number"), [(1, 10, 1), (300, 10, 2), (5000, 10, 8), (40, 950, 10)]
)
def test_shards_are_planned_by_size_but_not_too_few(num_images, num_bytes, number):
    shards = plan_shards("train", num_images, num_bytes, shard_bytes=100)
    assert len(shards) == number
    assert [shards[0].start, shards[-1].stop] == [0, num_images]
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1
