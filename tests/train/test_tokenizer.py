"""The trained tokenizer is deterministic, never loses a text, and is a normal fast tokenizer on disk."""

import functools
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from regionmed_clip.train.tokenizer import load_tokenizer, train_tokenizer

TEXTS = [
    "Small nodule in the left upper zone of the lung.",
    "Large effusion, 12.5 mm, right side",
    "no nodule in the right lung",
    "small nodule in the right upper zone",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=400, max_length=64)


def folded(text: str) -> str:
    """The text as the tokenizer promises to see it."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=12)


@given(WORDS, WORDS)
def test_two_different_texts_never_have_equal_ids(first, second):
    tokenizer = train_once()
    first_ids, second_ids = tokenizer([first, second])["input_ids"]
    assert (first_ids == second_ids) == (folded(first) == folded(second))


@functools.cache
def train_once() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300, max_length=200)


@pytest.mark.parametrize("text", ["café 肺結節 😀", "".join(map(chr, range(32, 127))), "[CLS] [SEP] [PAD] <unk>"])
def test_any_text_is_spelt_without_unknowns_and_comes_back(tokenizer, text):
    ids = tokenizer(text, truncation=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert [i for i in ids if i < 4] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == folded(text)


def test_a_text_lies_between_bos_and_eos_and_special_ids_are_those_of_the_config(tokenizer):
    ids = tokenizer("small nodule")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    special = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert special == (0, 1, 2, 3)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 3)


def test_common_words_are_one_token_and_case_does_not_matter(tokenizer):
    assert tokenizer.tokenize("Nodule") == tokenizer.tokenize("nodule")
    assert len(tokenizer.tokenize("small nodule")) == 2


def test_numbers_keep_all_their_digits(tokenizer):
    assert tokenizer("12 mm")["input_ids"] != tokenizer("13 mm")["input_ids"]
    assert "".join(tokenizer.tokenize("12.5")).replace("Ġ", "") == "12.5"


def test_padding_gives_ids_and_mask_only_and_truncation_keeps_the_end_mark(tokenizer):
    batch = tokenizer(["nodule " * 100, "lung"], padding=True, truncation=True)
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert [len(ids) for ids in batch["input_ids"]] == [64, 64]
    assert batch["input_ids"][0][-1] == tokenizer.eos_token_id
    assert batch["input_ids"][1][-1] == tokenizer.pad_token_id
    assert sum(batch["attention_mask"][1]) == len(tokenizer("lung")["input_ids"])


def test_the_vocabulary_keeps_its_limit_and_comes_from_these_texts_alone(tokenizer):
    assert 260 < len(tokenizer) <= 400
    assert len(train_tokenizer(["x"], vocab_size=4096, max_length=8)) == 260  # nothing to merge


def test_training_twice_gives_the_same_tokenizer_also_in_another_process(tokenizer):
    here = tokenizer.backend_tokenizer.to_str()
    assert train_tokenizer(iter(TEXTS), vocab_size=400, max_length=64).backend_tokenizer.to_str() == here
    code = (
        "import sys; from regionmed_clip.train.tokenizer import train_tokenizer; "
        f"sys.stdout.buffer.write(train_tokenizer({TEXTS!r}, 400, 64).backend_tokenizer.to_str().encode())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert there.stdout.decode() == here


def test_saving_and_loading_keeps_ids_and_limits(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.model_max_length == 64
        assert loaded.model_input_names == ["input_ids", "attention_mask"]
        texts = [*TEXTS, "[SEP] é"]
        assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert loaded.eos_token_id == tokenizer.eos_token_id


def test_a_loaded_tokenizer_gives_no_token_types_and_keeps_that_when_saved(tokenizer, tmp_path):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", model_max_length=9, model_input_names=names
    )
    other.save_pretrained(tmp_path / "with_types")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "with_types").model_input_names
    loaded = load_tokenizer(tmp_path / "with_types")
    assert sorted(loaded("lung")) == ["attention_mask", "input_ids"]
    loaded.save_pretrained(tmp_path / "without")
    assert sorted(AutoTokenizer.from_pretrained(tmp_path / "without")("lung")) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 300, 64), "no training text"),
        ((["a", None], 300, 64), "text 1 is None"),
        ((["a"], 100, 64), "vocab_size 100 is too small; it must be at least 260"),
        ((["a"], 300, 2), "max_length 2 is too small"),
    ],
)
def test_impossible_requests_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        train_tokenizer(*arguments)


def test_a_loaded_tokenizer_without_padding_or_limit_is_refused(tokenizer, tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, model_max_length=9).save_pretrained(
        tmp_path / "no_pad"
    )
    with pytest.raises(ValueError, match=r"no padding token.*tokenizer.pad_token ="):
        load_tokenizer(tmp_path / "no_pad")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]").save_pretrained(
        tmp_path / "no_limit"
    )
    with pytest.raises(ValueError, match="no model_max_length"):
        load_tokenizer(tmp_path / "no_limit")
