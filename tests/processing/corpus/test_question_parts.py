"""The parts of data with questions, whatever splits they come in: planned, held out, and read alike by all."""

import json

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.processing.corpus.fingerprints import TYPE, Part
from regionmed_clip.processing.corpus.question_parts import parts_of_rows, plan_parts, split_of_part, stream_part
from regionmed_clip.processing.corpus.records import SPLITS


@pytest.mark.parametrize(
    ("splits", "plan"),
    [
        (
            ["train", "validation", "test"],
            {"train": {"train": 1}, "validation": {"validation": 1}, "test": {"test": 1}},
        ),
        (["train", "test"], {"train": {"train": 0.85, "validation": 0.15}, "test": {"test": 1}}),
        (["train", "validation"], {"train": {"train": 0.8, "test": 0.2}, "validation": {"validation": 1}}),
        (["train"], {"train": {"train": 0.65, "validation": 0.15, "test": 0.2}}),
    ],
)
def test_what_the_data_lack_is_held_out_of_their_training_split(splits, plan):
    found = plan_parts(splits)
    assert {split: pytest.approx(dict(shares)) for split, shares in found.items()} == plan
    assert split_of_part(found, "test") == ("test" if "test" in splits else "train")


def test_without_a_training_split_nothing_can_be_held_out():
    with pytest.raises(ValueError, match=r"The data have the splits \['test'\] and no 'train'"):
        plan_parts(["test"])


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"have no part 'dev'; they have \['test', 'train', 'validation'\]"):
        split_of_part(plan_parts(["train"]), "dev")


def test_patients_stay_together_and_a_whole_split_is_left_as_it_is():
    prints = np.zeros(60, dtype=TYPE)
    prints["patient"] = np.repeat(np.arange(1, 31), 2)
    prints["phash"] = np.random.default_rng(0).integers(0, 2**63, size=(60, 5))
    images = Part("train", [f"image {row}" for row in range(60)], prints)
    names = parts_of_rows(images, plan_parts(["train"])["train"])
    assert set(names) == {"train", "validation", "test"}
    assert names[0::2] == names[1::2]
    assert parts_of_rows(images, {"train": 1.0}) == ["train"] * 60


def test_the_parts_of_one_split_share_no_image_and_hold_all_of_them(tmp_path):
    generator = np.random.default_rng(0)
    lines = []
    for number in range(80):
        pixels = generator.integers(0, 255, size=(4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "width": 48, "height": 48, "boxes_xyxy": [], "labels": [], "caption": "x"}
        lines.append(json.dumps({**row, "qa": [], "split": "train"}))
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines) + "\n")
    spec = f"jsonl:{tmp_path}"
    parts = {part: [example["image_id"] for example in stream_part(spec, part)] for part in SPLITS}
    assert len({image for ids in parts.values() for image in ids}) == sum(map(len, parts.values())) == 80
    assert all(parts.values())
    assert parts["test"] == [example["image_id"] for example in stream_part(spec, "test")]
