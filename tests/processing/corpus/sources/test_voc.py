"""Source `voc`: boxes land on the painted pixels; lists give the splits; bad XML costs its own image only."""

from __future__ import annotations

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all

from regionmed_clip.processing.corpus.sources.voc import ABOUT, VocFolder, open_sources

SIZES = {"BloodImage_00000": (60, 40), "BloodImage_00001": (30, 50), "BloodImage_00002": (44, 44), "extra": (20, 24)}
BOXES = {
    "BloodImage_00000": [(3, 4, 20, 9), (40, 20, 60, 40)],  # the second touches two borders
    "BloodImage_00001": [(0, 0, 1, 50)],  # three borders, one pixel wide
    "BloodImage_00002": [],
    "extra": [(2, 3, 9, 12)],
}
LABELS = ("WBC", "Platelets")
OBJECT = """
	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox>
			<xmin>{}</xmin>
			<ymin>{}</ymin>
			<xmax>{}</xmax>
			<ymax>{}</ymax>
		</bndbox>
	</object>"""


def xml_of(name, start=1, stop=0):
    """The XML of an image as LabelImg writes it; `start` and `stop` are added to the half-open edges."""
    width, height = SIZES[name]
    objects = "".join(
        OBJECT.format(x0 + start, y0 + start, x1 + stop, y1 + stop, name=LABELS[index])
        for index, (x0, y0, x1, y1) in enumerate(BOXES[name])
    )
    return f"""<annotation>
	<folder>JPEGImages</folder>
	<filename>of_another_machine.jpg</filename>
	<path>/home/pi/detection_dataset/JPEGImages/{name}.jpg</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>{objects}
</annotation>
"""


def write_voc(root, start=1, stop=0):
    """A VOC folder with every box painted; gives the root back."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, size in SIZES.items():
        paint(root / "JPEGImages" / f"{name}.png", size, BOXES[name])
        (root / "Annotations" / f"{name}.xml").write_text(xml_of(name, start, stop))
    lists = {"train": "BloodImage_00000\n", "val": "BloodImage_00001\n", "test": "BloodImage_00002\n"}
    lists["trainval"] = lists["train"] + lists["val"] + "extra\n"
    for name, text in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize(("edges", "start", "stop"), [("from_1", 1, 0), ("from_0", 0, -1), ("outer", 0, 0)])
def test_every_box_equals_the_painted_pixels(tmp_path, edges, start, stop):
    source = VocFolder(write_voc(tmp_path / "BCCD", start, stop), edges=edges)
    records = {record.image_id: record for record in read_all(source)}
    assert sorted(records) == sorted(f"BCCD/{name}" for name in SIZES)
    for name, size in SIZES.items():
        record = records[f"BCCD/{name}"]
        assert (record.width, record.height) == size
        assert [region.box for region in record.regions] == [
            painted_box(record.image, index) for index in range(len(BOXES[name]))
        ]
    findings = [region.finding for region in records["BCCD/BloodImage_00000"].regions]
    assert findings == ["white blood cell", "platelet"]
    assert records["BCCD/BloodImage_00002"].caption == "Medical image."


def test_the_rule_of_voc_is_the_default(tmp_path):
    root = write_voc(tmp_path)
    assert (
        VocFolder(root).revision == VocFolder(root, edges="from_1").revision != VocFolder(root, edges="outer").revision
    )
    with pytest.raises(ValueError, match="edges=corners"):
        VocFolder(root, edges="corners")


def test_the_lists_give_the_splits(tmp_path):
    source = VocFolder(write_voc(tmp_path / "s"))
    found = {split: [record.image_id for record in source.records(split)] for split in source.splits()}
    assert found == {
        "train": ["s/BloodImage_00000", "s/extra"],  # extra is in trainval.txt alone
        "validation": ["s/BloodImage_00001"],
        "test": ["s/BloodImage_00002"],
    }


def test_without_lists_a_hash_gives_the_split(tmp_path):
    root = write_voc(tmp_path)
    for path in (root / "ImageSets" / "Main").iterdir():
        path.unlink()
    assert len(read_all(VocFolder(root))) == 4


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("<xmin>4</xmin>", "<xmin>NaN</xmin>", "xmin is 'NaN'"),
        ("<xmin>4</xmin>", "", "xmin is ''"),
        ("<xmin>4</xmin>", "<xmin>25</xmin>", "x1 must exceed x0"),
        ("<xmax>20</xmax>", "<xmax>90</xmax>", "within the image"),
        ("<name>WBC</name>", "<name> </name>", "object 0 has no name"),
        ("<width>60</width>", "<width>61</width>", "its row says 61x40"),
        ("<width>60</width>", "<width>wide</width>", "a side of size is 'wide'"),
        ("</annotation>", "", "must be plain XML"),
        ("<annotation>", "<html>", "must be plain XML"),
    ],
)
def test_malformed_xml_makes_its_image_bad_and_no_other(tmp_path, old, new, part):
    root = write_voc(tmp_path)
    path = root / "Annotations" / "BloodImage_00000.xml"
    path.write_text(path.read_text().replace(old, new, 1))
    source = VocFolder(root)
    bad = bad_items(source)
    assert list(bad) == ["BloodImage_00000"]
    assert part in bad["BloodImage_00000"]
    assert "BloodImage_00000" in bad["BloodImage_00000"]
    assert len(list(source.records("validation"))) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_before_its_entities_expand(tmp_path, encoding):
    root = write_voc(tmp_path)
    entities = '<!ENTITY a0 "x">' + "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))
    bomb = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [{entities}]><annotation>&a11;</annotation>'
    )
    (root / "Annotations" / "BloodImage_00000.xml").write_bytes(bomb.encode(encoding))
    assert "DOCTYPE annotation is refused" in bad_items(VocFolder(root))["BloodImage_00000"]


def test_a_size_that_tools_leave_at_zero_is_not_compared(tmp_path):
    root = write_voc(tmp_path)
    path = root / "Annotations" / "BloodImage_00000.xml"
    path.write_text(path.read_text().replace("<width>60</width>", "<width>0</width>").replace(">40</h", ">0</h"))
    assert len(read_all(VocFolder(root))) == 4


def test_files_without_their_counterpart_are_bad_items(tmp_path):
    root = write_voc(tmp_path)
    (root / "Annotations" / "BloodImage_00000.xml").unlink()
    (root / "JPEGImages" / "BloodImage_00001.png").unlink()
    paint(root / "JPEGImages" / "extra.tif", SIZES["extra"])
    with (root / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("BloodImage_00009\n")
    bad = bad_items(VocFolder(root))
    assert sorted(bad) == ["BloodImage_00000", "BloodImage_00001", "BloodImage_00009", "extra"]
    assert "has no XML" in bad["BloodImage_00000"]
    assert "has no file in JPEGImages" in bad["BloodImage_00001"]
    assert "has 2 files" in bad["extra"]


def test_an_image_in_two_lists_is_bad(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets" / "Main" / "test.txt").write_text("BloodImage_00000\n")
    assert "the splits test, train" in bad_items(VocFolder(root))["BloodImage_00000"]


def test_a_wrong_root_is_refused_and_the_right_folder_named(tmp_path):
    write_voc(tmp_path / "repository" / "BCCD")
    with pytest.raises(ValueError, match="give its folder BCCD"):
        open_sources(tmp_path / "repository")
    with pytest.raises(ValueError, match="has no folder Annotations"):
        open_sources(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    assert ABOUT.is_verified
