"""A tokenizer that needs no download: byte-level BPE trained on the training texts alone; or any other, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # their ids are their places in this tuple
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256  # every byte is a token, so nothing is ever unknown
MIN_MAX_LENGTH = 3  # [CLS], one token, [SEP]
MODEL_INPUT_NAMES = ["input_ids", "attention_mask"]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096, max_length: int = 77) -> PreTrainedTokenizerFast:
    """A fast tokenizer learned from these texts alone; the same texts in the same order give the same tokenizer.

    A text becomes [CLS] ... [SEP] (also bos and eos). It is NFKC-normalised, lower-cased, and its white space folded to
    single spaces; two texts that still differ then get different ids unless truncated, whatever their script, because
    words not seen in training fall to pieces down to bytes. Special tokens written in a text are plain text.

    Args:
        texts: the training texts; read once.
        vocab_size: upper limit of the vocabulary, special tokens included; at least 260.
        max_length: `model_max_length` in tokens, [CLS] and [SEP] included; longer texts are truncated to it.

    Raises:
        ValueError: for no text, an item that is no string, or a size too small.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size {vocab_size} is too small; it must be at least {MIN_VOCAB_SIZE} (256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens). Give a larger one."
        )
    if max_length < MIN_MAX_LENGTH:
        raise ValueError(
            f"max_length {max_length} is too small; it must be at least {MIN_MAX_LENGTH}. Give a larger one."
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # words, numbers and punctuation apart
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_checked(texts), trainer)
    cls_id, sep_id = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", cls_id), ("[SEP]", sep_id)],
    )
    return _wrap(tokenizer, max_length)


def _wrap(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """The trained tokenizer as a normal fast tokenizer of transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=MODEL_INPUT_NAMES,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def _checked(texts: Iterable[str]) -> Iterable[str]:
    """The texts one by one; a ValueError at the first that is none, or at the end if there was none."""
    index = -1
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"text {index} is {text!r}, a {type(text).__name__}; every training text must be a string."
            )
        yield text
    if index < 0:
        raise ValueError("there is no training text; at least one is needed. Check the training split.")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub repository, giving `input_ids` and `attention_mask` only.

    Raises:
        ValueError: for one without a padding token or without a length limit.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"tokenizer {str(name_or_path)!r} has no padding token; batches of texts need one. Set it and save it "
            "again, for instance `tokenizer.pad_token = tokenizer.eos_token`."
        )
    if tokenizer.model_max_length > 1_000_000:
        raise ValueError(
            f"tokenizer {str(name_or_path)!r} states no model_max_length; a text encoder needs a limit. Set it to the "
            "number of positions of the text encoder and save the tokenizer again."
        )
    if list(tokenizer.model_input_names) != MODEL_INPUT_NAMES:
        tokenizer.model_input_names = MODEL_INPUT_NAMES
        tokenizer.init_kwargs["model_input_names"] = MODEL_INPUT_NAMES  # so that saving keeps it
    return tokenizer
