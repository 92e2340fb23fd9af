"""The audit finds each breach by its own rule, names the item, and never repeats personal data."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil

import numpy as np
import pytest
from built_corpora import build, noise, rewrite, write_source
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from regionmed_clip.processing.corpus.audit import check_corpus, check_path
from regionmed_clip.processing.corpus.audit_report import MAX_KEPT, MAX_SHOWN, RULES, AuditReport
from regionmed_clip.processing.corpus.audit_rows import tight_box_of_runs
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.perceptual_hash import hash_of_bytes, hex_of_hash
from regionmed_clip.processing.corpus.records import MaskRle

SECRET = "Seen by Dr. Quirk on 03/12/2011."


def check(corpus, **options):
    return check_corpus(corpus, show_progress=False, **options)


def with_region(rows):
    """The first row that has regions."""
    return next(row for row in rows if row["regions"])


def set_image(row, content):
    """Gives the row another image file with fitting hashes."""
    row["image"]["bytes"] = content
    row |= {"sha256": hashlib.sha256(content).hexdigest(), "phash": hex_of_hash(hash_of_bytes(content))}


def encoded(image_format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(noise(99)).save(file, image_format, **options)
    return file.getvalue()


def test_a_sound_corpus_has_no_finding(built_once):
    report = check(built_once)
    assert (report.num_items, report.counts, report.num_errors) == (8, {}, 0)
    assert list(report.lines())[-1].endswith("8 items checked, 0 errors, 0 warnings.")


def set_box(rows, box):
    region = with_region(rows)["regions"][0]
    region |= {"box": box, "mask": None}


def break_mask(rows, mask):
    with_region(rows)["regions"][0]["mask"] = mask


ROW_BREACHES = [
    ("box", lambda rows: set_box(rows, [4.0, 3.0, 4.0, 12.0])),
    ("box", lambda rows: set_box(rows, [4.0, 3.0, math.nan, 12.0])),
    ("box", lambda rows: set_box(rows, [4.0, 3.0, 61.0, 12.0])),
    ("mask", lambda rows: break_mask(rows, {"size": [48, 60], "counts": [48 * 60]})),
    ("mask", lambda rows: break_mask(rows, {"size": [48, 60], "counts": [0, 48 * 60]})),
    ("mask", lambda rows: break_mask(rows, {"size": [48, 60], "counts": [7]})),
    ("mask", lambda rows: break_mask(rows, {"size": [60, 48], "counts": [0, 48 * 60]})),
    ("image-hash", lambda rows: rows[0].update(sha256="0" * 64)),
    ("image-hash", lambda rows: rows[0].update(phash="0" * 80)),
    ("image-size", lambda rows: rows[0].update(width=61)),
    ("image-decode", lambda rows: rows[0].update(image={"bytes": None, "path": None})),
    ("key", lambda rows: rows[0].update(caption_key=rows[0]["caption_key"] ^ 1)),
    ("key", lambda rows: with_region(rows)["regions"][0].update(key=1)),
    ("record", lambda rows: rows[0].update(modality="")),
    ("record", lambda rows: with_region(rows)["regions"][0].update(size="huge")),
    ("duplicate-id", lambda rows: rows[0].update(image_id=rows[1]["image_id"])),
]


@pytest.mark.parametrize(("rule", "edit"), ROW_BREACHES)
def test_a_breach_in_a_row_is_found_by_its_rule(rule, edit, built):
    report = check(rewrite(built.folder, "train", edit))
    others = {"box", "mask"} if rule == "image-size" else set()  # with a wrong size no box and mask fits
    assert set(report.counts) - others == {rule}
    assert report.num_errors
    assert all(finding.item.startswith("chest/") for finding in report.kept[rule])


TEXT = {"level": "caption", "region": None, "text": "Nodule.", "key": 5, "origin": "template"}
NEGATIVE = {"region": None, "text": "Mass.", "key": 7, "changed": "finding"}
TEXT_BREACHES = [
    ("text", [TEXT | {"text": " "}], []),
    ("text", [TEXT | {"level": "poem"}], []),
    ("text", [TEXT | {"region": 9}], []),
    ("key", [TEXT, TEXT | {"key": 6}], []),
    ("key", [TEXT | {"key": -1}], []),
    ("text", [], [NEGATIVE | {"text": ""}]),
    ("text", [], [NEGATIVE | {"changed": "colour"}]),
    ("key", [TEXT], [NEGATIVE | {"key": 5}]),
    ("key", [TEXT], [NEGATIVE | {"text": "Nodule."}]),
]


@pytest.mark.parametrize(("rule", "texts", "negatives"), TEXT_BREACHES)
def test_a_breach_in_texts_and_negatives_is_found(rule, texts, negatives, built):
    report = check(rewrite(built.folder, "train", lambda rows: rows[0].update(texts=texts, negatives=negatives)))
    assert set(report.counts) == {rule}


def test_sound_texts_and_negatives_pass(built):
    edit = {"texts": [TEXT, TEXT | {"text": "Lump."}], "negatives": [NEGATIVE]}
    assert check(rewrite(built.folder, "train", lambda rows: rows[0].update(edit))).counts == {}


def test_personal_data_in_a_text_is_found_and_not_repeated(built):
    def write_secret(rows):
        row = next(row for row in rows if row["text_origin"] == "source")
        row |= {"findings": SECRET, "impression": "See MRN: 0012345."}

    report = check(rewrite(built.folder, "train", write_secret))
    assert report.counts == {"phi-name": 1, "phi-date": 1, "phi-record-number": 1}
    assert report.kept["phi-date"][0].value == "a date more exact than a year in findings, characters 21 to 31"
    shown = "\n".join(report.lines()) + report.as_json()
    assert not any(word in shown for word in ("Quirk", "2011", "0012345"))
    assert json.loads(report.as_json())["rules"]["phi-name"]["findings"][0]["item"] == "chest/images/002.png"


def test_a_patient_id_may_be_a_number_and_no_name(built):
    corpus = rewrite(built.folder, "train", lambda rows: rows[0].update(patient_id="1.2.840.113619.2.55.3.604688"))
    assert check(corpus).counts == {}
    corpus = rewrite(built.folder, "train", lambda rows: rows[0].update(patient_id="QUIRK^ANNA"))
    assert check(corpus).counts == {"phi-name": 1}


def test_an_accepted_rule_is_reported_and_is_no_error(built):
    corpus = rewrite(built.folder, "train", lambda rows: rows[0].update(impression=SECRET))
    report = check(corpus, accepted=("phi-date", "phi-name"))
    assert report.num_errors == 0
    assert any(line.startswith("ACCEPTED phi-date: 1 x") for line in report.lines())
    with pytest.raises(ValueError, match=r"rules \['phi-hobby'\] are not known"):
        check(corpus, accepted=("phi-hobby",))


def exif(tags):
    block = Image.Exif()
    for tag, value in tags.items():
        block[tag] = value
    return block


def png_text(key, value):
    info = PngInfo()
    info.add_text(key, value)
    return info


METADATA = [
    ("file-phi", encoded("JPEG", exif=exif({ExifTags.Base.Artist: "somebody"}))),
    ("file-phi", encoded("JPEG", exif=exif({ExifTags.Base.DateTime: "2010:08:19 10:00:00"}))),
    ("file-phi", encoded("JPEG", comment=b"for Dr. Quirk")),
    ("file-phi", encoded(pnginfo=png_text("Author", "somebody"))),
    ("file-phi", encoded("TIFF", artist="somebody")),
    ("file-text", encoded("JPEG", comment=b"converted")),
    ("file-text", encoded("JPEG", exif=exif({ExifTags.Base.ImageDescription: "chest"}))),
    ("file-text", encoded(pnginfo=png_text("Comment", "converted"))),
    (None, encoded("JPEG", exif=exif({ExifTags.Base.Software: "tool 1.0", ExifTags.Base.Make: "maker"}))),
    (None, encoded(pnginfo=png_text("Software", "tool 1.0"))),
]


@pytest.mark.parametrize(("rule", "content"), METADATA)
def test_text_in_an_image_file_is_found_without_being_repeated(rule, content, built):
    report = check(rewrite(built.folder, "train", lambda rows: set_image(rows[0], content)))
    assert set(report.counts) == ({rule} if rule else set())
    assert "Quirk" not in report.as_json()
    assert report.num_errors == (rule == "file-phi")


def test_an_image_cut_short_does_not_decode(built):
    def cut(rows):
        rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:-200]

    assert {"image-decode", "image-hash"} == set(check(rewrite(built.folder, "train", cut)).counts)


def test_an_upright_reading_of_the_size_is_the_rule(built):
    """A JPEG of 60 x 48 stored on its side is shown as 48 x 60."""
    turned = encoded("JPEG", exif=exif({ExifTags.Base.Orientation: 6}))

    def turn(rows):
        row = next(row for row in rows if not row["regions"])
        set_image(row, turned)
        row |= {"width": 48, "height": 60}

    assert check(rewrite(built.folder, "train", turn)).counts == {}


def test_a_patient_and_near_copies_in_two_splits_are_found(built):
    images = {}

    def take(rows):
        images.update({row["image_id"]: (row["image"]["bytes"], row["patient_id"]) for row in rows})

    rewrite(built.folder, "train", take)
    content, patient = next(iter(images.values()))
    with Image.open(io.BytesIO(content)) as image:
        file = io.BytesIO()
        image.convert("L").save(file, "JPEG", quality=90)

    def copy(rows):
        set_image(rows[0], file.getvalue())
        rows[0]["patient_id"] = patient

    report = check(rewrite(built.folder, "test", copy))
    assert report.counts == {"near-duplicate-in-splits": 1, "patient-in-splits": 1}


def test_two_images_with_equal_bytes_are_found(built):
    def copy(rows):
        with_box, other = [row for row in rows if row["regions"]][:2]
        set_image(other, with_box["image"]["bytes"])

    assert check(rewrite(built.folder, "train", copy)).counts == {"duplicate-image": 1}


def test_a_damaged_shard_is_named(built):
    path = built.shard_paths("test")[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert set(check(built).counts) == {"shard-hash", "shard-unreadable"}


def test_a_shard_beside_the_manifest_and_wrong_counts_are_found(built):
    shutil.copy(built.shard_paths("test")[0], built.folder / "data/test-00001-of-00002.parquet")
    manifest = json.loads((built.folder / "manifest.json").read_text())
    manifest["splits"]["test"]["num_regions"] += 1
    manifest["sources"][0]["num_questions"] += 1
    (built.folder / "manifest.json").write_text(json.dumps(manifest))
    report = check(BuiltCorpus(built.folder))
    assert report.counts == {"shard-unlisted": 1, "count": 2}
    assert {finding.item for finding in report.kept["count"]} == {"split test", "source chest"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["sources"][0].update(num_quarantined=1),
        lambda manifest: manifest["sources"][0].update(num_exact_duplicates=1),
        lambda manifest: manifest.update(num_near_duplicates=1),
        lambda manifest: [entry.update(num_images=0) for entry in (manifest["splits"]["validation"],)],
    ],
)
def test_a_wrong_number_in_the_manifest_is_found(edit, built):
    edit(built.manifest)
    (built.folder / "manifest.json").write_text(json.dumps(built.manifest))
    assert check(BuiltCorpus(built.folder)).counts.get("count")


def test_one_image_less_in_all_sums_is_found(built):
    last = list(built.rows("test"))[-1]
    for entry in (built.manifest["splits"]["test"], built.manifest["sources"][0]):
        entry["num_images"] -= 1
        entry["num_regions"] -= len(last["regions"])
        entry["num_questions"] -= len(last["qa"])
    (built.folder / "manifest.json").write_text(json.dumps(built.manifest))
    assert check(BuiltCorpus(built.folder)).counts == {"count": 1}


@pytest.mark.parametrize("path", ["../other.parquet", "data/../../x.parquet", "/etc/passwd", "data/", "README.md"])
def test_a_shard_outside_the_corpus_is_refused(path, built):
    built.manifest["splits"]["test"]["shards"][0]["path"] = path
    (built.folder / "manifest.json").write_text(json.dumps(built.manifest))
    with pytest.raises(ValueError, match="does not lie in data/"):
        BuiltCorpus(built.folder)


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "name": "a", "splits": []}', "[]", "", "{"])
def test_a_manifest_of_another_structure_is_refused(content, built):
    (built.folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json is (damaged|no manifest)"):
        BuiltCorpus(built.folder)


def test_a_manifest_that_lacks_an_entry_fails_the_check(built):
    del built.manifest["sources"]
    (built.folder / "manifest.json").write_text(json.dumps(built.manifest))
    with pytest.raises(ValueError, match="lacks sources"):
        check(BuiltCorpus(built.folder))


@pytest.mark.parametrize("name", ["image_id", "sha256", "regions", "qa", "texts", "width", "caption"])
def test_a_field_left_empty_is_found(name, built):
    rewrite(built.folder, "train", lambda rows: rows[0].update({name: None}))
    report = check(BuiltCorpus(built.folder))
    assert report.counts["record"] == 1
    assert name in report.kept["record"][0].value


def test_a_row_without_texts_or_description_is_found(built):
    rewrite(built.folder, "train", lambda rows: rows[0].update(texts=[]))
    rewrite(built.folder, "test", lambda rows: with_region(rows)["regions"][0].update(description=" "))
    assert check(BuiltCorpus(built.folder)).counts["text"] == 2


def test_a_person_named_in_an_image_id_is_found_and_not_repeated(built):
    rewrite(built.folder, "train", lambda rows: rows[0].update(image_id="chest/images/QUIRK^ADA.png"))
    report = check(BuiltCorpus(built.folder))
    assert report.counts["phi-name"] == 1
    assert "QUIRK" not in report.as_json() + "\n".join(report.lines())


def test_other_columns_are_no_corpus_of_this_version(built):
    import pyarrow.parquet as pq

    path = built.shard_paths("test")[0]
    pq.write_table(pq.read_table(path).drop_columns(["phash"]), path)
    report = check(built)
    assert set(report.counts) == {"schema", "shard-hash"}
    assert "phash" in report.kept["schema"][0].value


def test_burnt_in_text_is_a_warning(tmp_path):
    from PIL import ImageDraw, ImageFont

    image = Image.new("L", (320, 240), 10)
    ImageDraw.Draw(image).text((8, 8), "NAME: SOMEBODY 1234", fill=255, font=ImageFont.load_default(14))
    images = [np.asarray(image), noise(1, (320, 240))]
    report = check(build(tmp_path / "out", write_source(tmp_path / "marked", images)))
    assert report.counts == {"burnt-in-text": 1}
    assert (report.num_errors, report.num_warnings) == (0, 1)
    assert report.kept["burnt-in-text"][0].item == "marked/images/000.png"


def test_several_processes_report_as_one_does(built, monkeypatch):
    monkeypatch.setattr("regionmed_clip.processing.corpus.audit.MIN_IMAGES_OF_PROCESS", 1)
    corpus = rewrite(built.folder, "train", lambda rows: rows[0].update(impression=SECRET))
    assert check(corpus, num_processes=2).as_json() == check(corpus, num_processes=1).as_json()


def test_a_folder_that_is_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no built corpus .* and holds no DICOM file"):
        check_path(tmp_path, show_progress=False)


def test_identifying_elements_of_dicom_files_are_named_and_not_shown(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    (tmp_path / "deep").mkdir()
    dataset = pydicom.dcmread(path)
    dataset.PatientName = "Quirk^Anna"
    dataset.save_as(tmp_path / "deep" / "one.dcm")
    dataset.save_as(tmp_path / "two")  # no suffix
    dataset.save_as(tmp_path / "1.2.840.99")  # named by its UID
    (tmp_path / "1.2.840.98").write_text("text")
    (tmp_path / "three.dcm").write_bytes(b"nothing")
    (tmp_path / "notes").write_text("text")
    report = check_path(tmp_path, show_progress=False)
    assert report.num_items == 4
    assert report.counts == {"dicom-tags": 3, "dicom-unreadable": 1}
    assert [finding.item for finding in report.kept["dicom-tags"]] == ["1.2.840.99", "deep/one.dcm", "two"]
    assert "PatientName" in report.kept["dicom-tags"][0].value
    assert "Quirk" not in report.as_json()


@pytest.mark.parametrize("seed", range(20))
def test_the_tight_box_of_runs_is_that_of_the_drawn_mask(seed):
    drawn = np.random.default_rng(seed)
    mask = np.zeros((7, 9), dtype=bool)
    y, x = drawn.integers(0, 7), drawn.integers(0, 9)
    mask[y : y + drawn.integers(1, 8), x : x + drawn.integers(1, 10)] = True
    mask &= drawn.random((7, 9)) < drawn.choice([0.3, 1.0])
    ys, xs = np.nonzero(mask)
    expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
    assert tight_box_of_runs(MaskRle.from_array(mask)) == expected


def test_a_report_keeps_a_bounded_number_of_findings_and_counts_all():
    first, second = AuditReport("a"), AuditReport("b")
    for report in (first, second):
        for number in range(MAX_KEPT - 10):
            report.add("box", f"image {number}", "box is bad")
    first.merge(second)
    assert first.counts["box"] == 2 * (MAX_KEPT - 10)
    assert len(first.kept["box"]) == MAX_KEPT
    assert len(list(first.lines())) == MAX_SHOWN + 4


def test_every_rule_says_what_to_do():
    assert all(rule.severity in ("error", "warning") and rule.statement and rule.way_out for rule in RULES.values())
