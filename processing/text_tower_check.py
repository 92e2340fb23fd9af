"""Whether a tokenizer fits the text tower that a model's configuration describes, so that no two texts become one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

# towers whose positions are counted from the padding id + 1 on: 514 positions take 512 tokens
POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "longformer",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
PADDING_UNREAD = ("clip_text_model",)  # causal and pooled at the end token: nothing ever looks at the padding
LEGACY_CLIP_END_ID = 2  # with it the library takes the largest id of a text for its end token
PROBES = ("a text", "a text longer than the probe allows " * 8)
PROBE_LENGTH = 12


def check_text_tower(tokenizer: Any, pads_to_full_length: bool, config: Mapping[str, Any]) -> None:
    """None, if texts that the tokenizer encodes are embedded as the model means them.

    The ids of a tokenizer's begin tokens are not looked at: no text tower reads them.

    Args:
        tokenizer: of the processor.
        pads_to_full_length: the processor's `text_pad_to_full_length`.
        config: `model.config.to_dict()`, or the content of the model's config.json.

    Raises:
        ValueError: for ids beyond the tower's vocabulary, texts longer than its positions, another padding id than the
            tower's, padding on the left, and for what the pooling needs: "eos" one end token, the tower's, after every
            text and nowhere before; "last" padding to full length.
    """
    fields = dict(config["text_config"])
    text, pooling = CONFIG_MAPPING[fields.pop("model_type")](**fields), config["text_pooling"]
    _check_vocabulary(tokenizer, text)
    _check_length(tokenizer, text)
    _check_padding(tokenizer, text, pooling)
    if pooling == "eos":
        _check_end(tokenizer, text)
    if pooling == "last" and not pads_to_full_length:
        raise ValueError(
            "text_pooling is 'last' (SigLIP: the state of the last position) and the processor trims its padding; "
            "build it with text_pad_to_full_length=True."
        )


def check_saved_text_tower(tokenizer: Any, pads_to_full_length: bool, folder: str | Path) -> None:
    """`check_text_tower` against the model saved in `folder`; None too if no RegionMed-CLIP model lies there."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {"text_config", "text_pooling"} <= set(config):
        check_text_tower(tokenizer, pads_to_full_length, config)


def _check_vocabulary(tokenizer: Any, text: Any) -> None:
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {largest} and the text tower {text.vocab_size} token embeddings; call "
            "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer of the text tower's checkpoint."
        )


def _check_length(tokenizer: Any, text: Any) -> None:
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and text.model_type in POSITIONS_AFTER_PADDING:
        limit -= text.pad_token_id + 1
    if limit is not None and tokenizer.model_max_length > limit:
        raise ValueError(
            f"texts may have {tokenizer.model_max_length} tokens (the tokenizer's model_max_length) and the text tower "
            f"{text.model_type!r} has positions for {limit}; set tokenizer.model_max_length = {limit} or less, or "
            "train a tower with a larger text_config.max_position_embeddings."
        )


def _check_padding(tokenizer: Any, text: Any, pooling: str) -> None:
    expected, found = text.pad_token_id, tokenizer.pad_token_id
    if expected is not None and expected != found and text.model_type not in PADDING_UNREAD:
        raise ValueError(
            f"the tokenizer pads with id {found} and the text tower {text.model_type!r} takes id {expected} for "
            f"padding (pad_token_id); set model.config.text_config.pad_token_id = {found}, or take the tokenizer of "
            "the text tower's checkpoint."
        )
    if pooling != "last" and tokenizer.padding_side != "right":
        raise ValueError(
            f"the tokenizer pads on the {tokenizer.padding_side}, which moves the tokens of a text to other positions; "
            "set tokenizer.padding_side = 'right'."
        )


def _check_end(tokenizer: Any, text: Any) -> None:
    end, found = text.eos_token_id, tokenizer.eos_token_id
    way_out = "take another tokenizer, or text_pooling 'mean'."
    if text.model_type == "clip_text_model" and end == LEGACY_CLIP_END_ID:
        end = max(tokenizer.get_vocab().values())
        if found != end:
            raise ValueError(
                f"text_config.eos_token_id is {LEGACY_CLIP_END_ID}, which the library reads as 'the largest id of the "
                f"text' (old CLIP checkpoints); the tokenizer's largest id is {end} and its end token {found}. If "
                f"tokens were added to CLIP's, set model.config.text_config.eos_token_id = {found}; else {way_out}"
            )
    if found is None or found != end:
        raise ValueError(
            f"text_pooling is 'eos' and the tokenizer's end token has id {found}, the text tower's {end}; set "
            f"model.config.text_config.eos_token_id to the tokenizer's, or {way_out}"
        )
    settings = {"truncation": True, "max_length": min(PROBE_LENGTH, tokenizer.model_max_length)}
    for probe in PROBES:
        ids = list(tokenizer(probe, **settings)["input_ids"])
        if end not in ids or ids.index(end) != len(ids) - 1:
            raise ValueError(
                f"text_pooling is 'eos' and the tokenizer encodes {probe[:20]!r} as {ids}; its end token {end} must "
                "come once, after the text, or texts would be pooled at one and the same place. Use a tokenizer that "
                "ends texts so, or text_pooling 'mean'."
            )
