"""The builder on built corpora: every column, projection, sharing and resuming; and how plain `datasets` reads them."""

from __future__ import annotations

import io
import json
import shutil
from itertools import chain

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image
from tiny_corpora import small_corpus
from torch.utils.data import DataLoader

from regionmed_clip.processing.corpus.medregion import MedRegion, corpus_features, corpus_schema
from regionmed_clip.processing.corpus.records import MaskRle


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """28 training images in 4 shards of at most 8 rows, row groups of 3; 12 test images in 2 shards."""
    return small_corpus(tmp_path_factory.mktemp("corpus") / "demo", num_images=40)


def stream(corpus, split="train", **options):
    return MedRegion(config_name="corpus", data_dir=str(corpus.folder), **options).as_streaming_dataset(split=split)


def ids(examples):
    return [example["image_id"] for example in examples]


def pixels(image):
    return np.asarray(image).tolist()


def decoded(row):
    """A row of a shard with its image as pixels."""
    return row | {"image": pixels(Image.open(io.BytesIO(row["image"]["bytes"])))}


def test_a_streamed_example_has_every_column_of_its_row_and_a_decoded_image(corpus):
    examples = list(stream(corpus))
    assert len(examples) == 28
    assert list(examples[0]) == list(corpus_features()) == corpus_schema().names
    assert isinstance(examples[0]["image"], Image.Image)
    assert [example | {"image": pixels(example["image"])} for example in examples] == [
        decoded(row) for row in corpus.rows("train")
    ]
    (region,) = examples[0]["regions"]
    mask = MaskRle(tuple(region["mask"]["size"]), tuple(region["mask"]["counts"])).to_array()
    assert (mask.sum(), region["box"]) == (12, [1.0, 1.0, 4.0, 5.0])


def test_masks_are_left_out_on_demand(corpus):
    (region,) = next(iter(stream(corpus, with_masks=False)))["regions"]
    assert region["mask"] is None
    assert region["finding"] == "nerve"


def test_a_text_only_pass_touches_no_byte_of_the_images(corpus, tmp_path):
    """The image columns of a copy are overwritten: reading them fails, reading the others does not notice."""
    shutil.copytree(corpus.folder, tmp_path / "broken")
    for path in (tmp_path / "broken" / "data").glob("*.parquet"):
        footer, content = pq.read_metadata(path), bytearray(path.read_bytes())
        for group in range(footer.num_row_groups):
            columns = [footer.row_group(group).column(k) for k in range(footer.num_columns)]
            for column in columns:
                if column.path_in_schema.startswith("image."):
                    start = column.dictionary_page_offset or column.data_page_offset
                    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(content)
    broken = type(corpus)(tmp_path / "broken")
    columns = ["image_id", "caption", "regions", "texts"]
    expected = [{name: row[name] for name in columns} for row in corpus.rows("train", columns=columns)]
    assert list(stream(broken, columns=columns)) == expected
    assert list(expected[0]) == list(stream(broken, columns=columns).features) == columns
    with pytest.raises(ValueError):
        next(iter(stream(broken)))


def test_unknown_columns_are_refused_by_name(corpus):
    with pytest.raises(ValueError, match=r"columns has \['captions'\]; the columns are image, image_id"):
        stream(corpus, columns=["captions"])
    with pytest.raises(ValueError, match="columns has no name"):
        stream(corpus, columns=[])


def test_the_shards_are_the_files_and_their_order_is_that_of_the_rows(corpus):
    found = stream(corpus)
    assert found.num_shards == len(corpus.shard_paths("train")) == 4
    assert ids(found) == ids(corpus.rows("train", columns=["image_id"]))


@pytest.mark.parametrize("num_read", [0, 1, 4, 8, 13, 27])
def test_a_stream_resumes_with_the_very_next_row_even_within_a_shard(corpus, num_read):
    found = stream(corpus)
    reader = iter(found)
    for _ in range(num_read):
        next(reader)
    resumed = stream(corpus)
    resumed.load_state_dict(json.loads(json.dumps(found.state_dict())))
    assert ids(resumed) == ids(corpus.rows("train"))[num_read:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_without_loss_or_repeat(corpus, world_size):
    parts = [ids(split_dataset_by_node(stream(corpus), rank, world_size)) for rank in range(world_size)]
    assert sorted(chain.from_iterable(parts)) == ids(corpus.rows("train"))


def test_two_processes_with_two_workers_each_see_every_row_once(corpus):
    seen = []
    for rank in range(2):
        shared = split_dataset_by_node(stream(corpus, columns=["image_id"]), rank, 2)
        seen += ids(DataLoader(shared, batch_size=None, num_workers=2))
    assert sorted(seen) == ids(corpus.rows("train"))


def test_plain_parquet_and_plain_folder_loading_give_the_same_examples(corpus, tmp_path):
    files = {split: [str(path) for path in corpus.shard_paths(split)] for split in corpus.splits()}
    by_file = datasets.load_dataset("parquet", data_files=files, streaming=True, cache_dir=str(tmp_path))
    by_folder = datasets.load_dataset(str(corpus.folder), streaming=True, cache_dir=str(tmp_path))
    for split in ("train", "test"):
        expected = [decoded(row) for row in corpus.rows(split)]
        for loaded in (by_file, by_folder):
            assert loaded[split].features == corpus_features()
            examples = list(loaded[split])
            assert isinstance(examples[0]["image"], Image.Image)
            assert [example | {"image": pixels(example["image"])} for example in examples] == expected


def test_a_prepared_corpus_equals_the_stream(corpus, tmp_path):
    builder = MedRegion(config_name="corpus", data_dir=str(corpus.folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    prepared = list(builder.as_dataset(split="test"))
    assert [example | {"image": pixels(example["image"])} for example in prepared] == [
        decoded(row) for row in corpus.rows("test")
    ]


def test_the_note_of_a_shard_is_in_the_form_that_both_generations_of_datasets_read():
    note = corpus_schema().metadata[b"huggingface"].decode()
    assert '"List"' not in note
    assert datasets.Features.from_arrow_schema(corpus_schema()) == corpus_features()


def test_a_folder_that_is_no_built_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest.json; data_dir is a folder that regionmed-corpus has built"):
        MedRegion(config_name="corpus", data_dir=str(tmp_path)).as_streaming_dataset(split="train")
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99; this file reads 1"):
        MedRegion(config_name="corpus", data_dir=str(tmp_path)).as_streaming_dataset(split="train")
    for content in ('{"format": 1,', "[]", '{"format": 1}', '{"format": 1, "splits": {"train": []}}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"manifest.json is no whole manifest .* build the corpus again"):
            MedRegion(config_name="corpus", data_dir=str(tmp_path)).as_streaming_dataset(split="train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read: .*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot be read: .*magic bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:4] + bytes(3000) + path.read_bytes()[3004:]), "cannot be re"),
        (lambda path: pq.write_table(pq.read_table(path).drop_columns(["texts"]), path), "lacks the columns texts"),
    ],
)
def test_a_damaged_shard_is_named(corpus, tmp_path, damage, message):
    folder = shutil.copytree(corpus.folder, tmp_path / "copy")
    path = folder / corpus.shard_paths("train")[1].relative_to(corpus.folder)
    damage(path)
    examples = iter(MedRegion(config_name="corpus", data_dir=str(folder)).as_streaming_dataset(split="train"))
    assert len([next(examples) for _ in range(8)]) == 8  # the first shard is whole
    with pytest.raises(ValueError, match=f"{path.name} {message}|{path.name} cannot be read: it {message}"):
        next(examples)


def test_no_blocks_are_refused():
    with pytest.raises(ValueError, match="num_blocks is 0; it must be at least 1"):
        MedRegion(config_name="phantom", num_train=3, num_blocks=0).as_streaming_dataset(split="train")


def test_the_name_of_the_config_comes_first_as_the_documents_write_it(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    builder = MedRegion("corpus", data_dir=str(corpus.folder), columns=["image_id"], cache_dir=str(tmp_path / "cache"))
    assert len(list(builder.as_streaming_dataset(split="train"))) == corpus.num_images("train")
    assert not (tmp_path / "corpus").exists()
