"""The builder: streams examples in index order, in shards, resumably, offline and without leaving files behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image

from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.corpus.medregion import MedRegion

PHANTOM = "phantom:num_train=10,num_test=4,seed=5"


def write_source(folder, num_images):
    """A jsonl source with a mask in every image; image k is of grey value k. Gives the folder back."""
    (folder / "images").mkdir(parents=True)
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:5, 1:4] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    rows = []
    for index in range(num_images):
        Image.new("L", (8, 6), color=index).save(folder / f"images/{index:03d}.png")
        made = {"image": f"images/{index:03d}.png", "width": 8, "height": 6, "mask": "mask.png"}
        made |= {"boxes_xyxy": [[1, 1, 4, 5]], "labels": ["nerve"], "qa": [{"q": "Is it?", "a": "yes"}]}
        rows.append(json.dumps(made) + "\n")
    (folder / "annotations.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def source_folder(tmp_path):
    return write_source(tmp_path / "demo", 40)  # 28 train, 12 test


def ids(examples):
    return [example["image_id"] for example in examples]


def test_an_example_holds_image_texts_keys_and_regions(source_folder):
    example = next(iter(stream_examples(f"jsonl:{source_folder}", "test")))
    assert isinstance(example["image"], Image.Image)
    assert example["image"].getpixel((0, 0)) == 28
    assert (example["image_id"], example["width"], example["height"]) == ("demo/images/028.png", 8, 6)
    assert example["caption"] == "Medical image with a nerve."
    assert example["qa"] == [{"question": "Is it?", "answer": "yes", "kind": "closed"}]
    (region,) = example["regions"]
    assert region["box"] == [1.0, 1.0, 4.0, 5.0]
    assert region["description"] == "nerve"
    assert region["anatomy"] is None
    assert region["mask"] is None
    assert isinstance(region["key"], int)
    assert isinstance(example["caption_key"], int)


def test_masks_come_as_run_lengths_when_asked_for(source_folder):
    example = next(iter(stream_examples(f"jsonl:{source_folder}", "train", with_masks=True)))
    # columns of 6: one empty column and 1 pixel, then 4 ones and 2 zeros per column, 3 columns of ones
    assert example["regions"][0]["mask"] == {"size": [6, 8], "counts": [7, 4, 2, 4, 2, 4, 25]}


def test_undecoded_images_are_paths_or_bytes(source_folder):
    image = next(iter(stream_examples(f"jsonl:{source_folder}", "train", decode_images=False)))["image"]
    assert image == {"path": str(source_folder / "images/000.png"), "bytes": None}
    image = next(iter(stream_examples(PHANTOM, "train", decode_images=False)))["image"]
    assert image["path"] is None
    assert image["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize("num_shards", [1, 3, 8, 100])
def test_the_order_is_that_of_the_rows_for_every_number_of_shards(source_folder, num_shards):
    stream = stream_examples(f"jsonl:{source_folder}", "train", num_shards=num_shards)
    assert stream.num_shards == min(num_shards, 28)
    assert ids(stream) == [f"demo/images/{index:03d}.png" for index in range(28)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_examples_without_loss_or_repeat(source_folder, world_size):
    stream = stream_examples(f"jsonl:{source_folder}", "train")
    parts = [ids(split_dataset_by_node(stream, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(chain.from_iterable(parts)) == ids(stream)


@pytest.mark.parametrize("num_read", [0, 1, 10, 27])
def test_a_stream_resumes_exactly(source_folder, num_read):
    stream = stream_examples(f"jsonl:{source_folder}", "train")
    reader = iter(stream)
    for _ in range(num_read):
        next(reader)
    state = stream.state_dict()
    rest = ids(reader)
    resumed = stream_examples(f"jsonl:{source_folder}", "train")
    resumed.load_state_dict(state)
    assert ids(resumed) == rest
    assert len(rest) == 28 - num_read


def test_a_prepared_data_set_equals_the_stream(source_folder, tmp_path):
    builder = MedRegion(
        config_name="jsonl", data_dir=str(source_folder), with_masks=True, cache_dir=str(tmp_path / "cache")
    )
    builder.download_and_prepare()
    prepared = list(builder.as_dataset(split="train"))
    streamed = list(builder.as_streaming_dataset(split="train"))
    for example in prepared + streamed:
        example["image"] = np.asarray(example["image"]).tolist()
    assert prepared == streamed


def test_phantoms_stream_by_their_options():
    builder_options = {"num_train": 10, "num_test": 4, "seed": 5}
    stream = stream_examples(PHANTOM, "train")
    examples = list(stream)
    assert len(examples) == len(set(ids(examples))) == 10
    assert len(list(stream_examples(PHANTOM, "test"))) == 4
    assert not set(ids(examples)) & set(ids(stream_examples(PHANTOM, "test")))
    assert all(isinstance(example["image"], Image.Image) for example in examples)
    assert ids(MedRegion(config_name="phantom", **builder_options).as_streaming_dataset(split="train")) == ids(examples)


def test_options_of_the_other_config_are_refused(source_folder):
    with pytest.raises(ValueError, match="it takes a data_dir and none of num_train"):
        MedRegion(config_name="jsonl", data_dir=str(source_folder), seed=3).as_streaming_dataset(split="train")
    with pytest.raises(ValueError, match="it takes a data_dir"):
        MedRegion(config_name="jsonl").as_streaming_dataset(split="train")
    with pytest.raises(ValueError, match="num_trian"):
        MedRegion(config_name="phantom", num_trian=3)


def test_a_bad_row_stops_the_stream_with_its_line(source_folder):
    (source_folder / "images/003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"annotations.jsonl:4: .*003.png cannot be decoded"):
        list(stream_examples(f"jsonl:{source_folder}", "train"))


def test_streaming_writes_no_file_and_needs_no_network(source_folder, tmp_path):
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "from regionmed_clip.processing.corpus.data_spec import stream_examples\n"
        "print(sum(1 for _ in stream_examples(sys.argv[1], 'train')))\n"
    )
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", code, f"jsonl:{source_folder}"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "28", done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
