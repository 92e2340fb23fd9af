"""Source `voc`: a folder in the layout of Pascal VOC detection, such as BCCD.

Annotations/ID.xml, JPEGImages/ID.jpg and ImageSets/Main/{train,val,trainval,test}.txt, after the loader of detectron2,
https://github.com/facebookresearch/detectron2, detectron2/data/datasets/pascal_voc.py (the commit is in `ABOUT`), and
the manual of VOC2007, http://host.robots.ox.ac.uk:8080/pascal/VOC/voc2007/htmldoc/. A set in this layout is BCCD,
https://github.com/Shenggan/BCCD_Dataset, whose root here is its folder BCCD.

An image is told by its name: `filename` and `path` of the XML, which often name another machine's files, are not read.
An image without XML is not annotated, which differs from having no boxes: it is a bad item. All objects count, the
`difficult` ones too. Without lists, or for an image in none, the split is drawn by hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.generic_folder import (
    GENERIC_ACCESS,
    GENERIC_LICENSE,
    GENERIC_OPTIONS,
    SPLIT_OF_WORD,
    GenericFolder,
    finding_of_label,
    one_of,
    one_split,
)
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_files import (
    fit_box,
    list_images,
    open_image_file,
    parse_number,
    path_inside,
)

ANNOTATIONS_FOLDER, IMAGES_FOLDER, LISTS_FOLDER = "Annotations", "JPEGImages", "ImageSets/Main"
LIST_NAMES = ("train", "val", "test", "trainval")  # trainval last: it says less than the two it joins
SHIFT_OF_EDGES = {  # what is added to (xmin, ymin) and to (xmax, ymax) to get 0-based half-open boxes
    "from_1": (
        -1,
        0,
    ),  # VOC: the first pixel is 1, and xmax is the last pixel inside: its outer edge has the same number
    "from_0": (0, 1),  # the first pixel is 0, and xmax is the last pixel inside
    "outer": (0, 0),  # xmax is the edge behind the last pixel
}

ABOUT = SourceAbout(
    name="voc",
    title="Pascal VOC detection, XML (BCCD and others)",
    license=GENERIC_LICENSE,
    access=GENERIC_ACCESS,
    layout="Annotations/*.xml, JPEGImages/ and, optionally, ImageSets/Main/{train,val,test}.txt",
    layout_url="https://github.com/facebookresearch/detectron2/blob/0a07b6bf895639a35a223fc2027216b105525971/"
    "detectron2/data/datasets/pascal_voc.py",
    options=GENERIC_OPTIONS
    | {
        "edges": "how bndbox counts pixels: from_1 (first pixel 1, xmax inside; the rule of VOC and the default), "
        "from_0 (first pixel 0, xmax inside) or outer (0-based, xmax the edge behind; many tools)",
    },
)


class VocFolder(GenericFolder):
    """Records of the images in JPEGImages.

    Args:
        root, index_path: as in IndexedSource.
        edges: see `ABOUT.options`. VOC's own rule is the default, since a file does not tell which tool wrote it; a
            wrong choice moves an edge by one pixel.
        options: those of GenericFolder.
    """

    about = ABOUT

    def __init__(
        self, root: str | Path, *, index_path: Path | None = None, edges: str = "from_1", **options: str
    ) -> None:
        if edges not in SHIFT_OF_EDGES:
            raise ValueError(f"voc: option edges={edges}; it must be one of {', '.join(SHIFT_OF_EDGES)}. Choose one.")
        self._edges = edges
        super().__init__(root, index_path=index_path, **options)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the annotations or the images are missing."""
        for name in (ANNOTATIONS_FOLDER, IMAGES_FOLDER):
            if not (self.root / name).is_dir():
                deeper = sorted(path.parent.name for path in self.root.glob(f"*/{name}") if path.is_dir())
                hint = f"give its folder {deeper[0]}" if deeper else "check the path"
                raise ValueError(f"{self.root} has no folder {name}; a voc root holds {ABOUT.layout}: {hint}.")

    def annotation_files(self) -> list[Path]:
        """The XML files and the lists of the splits."""
        lists = (self.root / LISTS_FOLDER / f"{name}.txt" for name in LIST_NAMES)
        return [*self._xml_files(), *(path for path in lists if path.is_file())]

    def reading(self) -> tuple[str, ...]:
        """How the edges are read."""
        return (self._edges,)

    def rows(self) -> Iterator[Row | BadRow]:
        """One row per XML file, per image and per line of a list, under the image's name without suffix."""
        for path in self._xml_files():
            yield Row(self._key(path, ANNOTATIONS_FOLDER), {"xml": path.relative_to(self.root).as_posix()})
        for path in list_images(self.root / IMAGES_FOLDER):
            yield Row(self._key(path, IMAGES_FOLDER), {"image": path.relative_to(self.root).as_posix()})
        for name in LIST_NAMES:
            path = self.root / LISTS_FOLDER / f"{name}.txt"
            if not path.is_file():
                continue
            role = "joint_list" if name == "trainval" else "list"
            with path.open(encoding="utf-8-sig") as lines:
                for line in filter(None, map(str.strip, lines)):
                    yield Row(line, {role: SPLIT_OF_WORD[name]})

    def split_of(self, item: Item) -> str | None:
        """The split of the list that names the image; "train" for one in trainval.txt alone."""
        is_joint = any("joint_list" in row for row in item.rows)
        return one_split(item) or (SPLIT_OF_WORD["trainval"] if is_joint else None)

    def record(self, item: Item) -> StudyRecord:
        """The record of an image with the objects of its XML file."""
        missing_image = f"has no file in {IMAGES_FOLDER}; every annotated or listed image needs it. Restore it."
        image_path = path_inside(self.root, one_of(item, "image", missing_image))
        missing_xml = f"has no XML in {ANNOTATIONS_FOLDER}; an image without boxes has an XML without object. Add it."
        xml_path = path_inside(self.root, one_of(item, "xml", missing_xml))
        annotation = parse_xml(xml_path)
        image = open_image_file(image_path, _stated_size(annotation, xml_path.name))
        regions = tuple(
            self._region(thing, image.width, image.height, f"{xml_path.name}: object {number}")
            for number, thing in enumerate(annotation.findall("object"))
        )
        return self.study(item, image, modality=self.modality, anatomy=self.anatomy, regions=regions)

    def _xml_files(self) -> list[Path]:
        """The XML files, sorted by path."""
        return sorted((self.root / ANNOTATIONS_FOLDER).rglob("*.xml"))

    def _key(self, path: Path, folder: str) -> str:
        """The name of an image as the lists write it: the path within its folder, without suffix."""
        return path.relative_to(self.root / folder).with_suffix("").as_posix()

    def _region(self, thing: ElementTree.Element, width: int, height: int, where: str) -> RegionRecord:
        """The region of one object element."""
        label = (thing.findtext("name") or "").strip()
        if not label:
            raise ValueError(f"{where} has no name; an object names its class. Correct or drop it.")
        edges = {}
        for edge in ("xmin", "ymin", "xmax", "ymax"):
            edges[edge] = parse_number(thing.findtext(f"bndbox/{edge}") or "", f"{where} ({label}): {edge}")
        at_min, at_max = SHIFT_OF_EDGES[self._edges]
        box = (edges["xmin"] + at_min, edges["ymin"] + at_min, edges["xmax"] + at_max, edges["ymax"] + at_max)
        return RegionRecord(fit_box(box, width, height), finding_of_label(label))


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree of a document without DOCTYPE, hence without entities of its own that could expand."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Nothing; always raises ValueError: the parser calls it at the start of a DOCTYPE."""
        raise ValueError(f"DOCTYPE {name} is refused; annotations need none, and its entities may expand without end.")


def parse_xml(path: Path) -> ElementTree.Element:
    """The root element of an annotation file; ValueError where it is no XML, has a DOCTYPE or another root."""
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(path.read_bytes())
        root = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read ({error}); it must be plain XML. Fetch it again.") from error
    if root.tag != "annotation":
        raise ValueError(f"{path.name} has the root <{root.tag}>; VOC's is <annotation>. Fetch the right file.")
    return root


def _stated_size(annotation: ElementTree.Element, where: str) -> tuple[int, int] | None:
    """(width, height) of the size element; None where it is missing or 0x0, as tools write that never saw the image."""
    if annotation.find("size") is None:
        return None
    texts = [annotation.findtext(f"size/{side}") or "" for side in ("width", "height")]
    width, height = (int(parse_number(text, f"{where}: a side of size")) for text in texts)
    return (width, height) if width or height else None


open_sources = VocFolder.open
