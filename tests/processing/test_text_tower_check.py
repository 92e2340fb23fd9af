"""Model and processor fit, or saving them is refused: end and padding ids, vocabulary, lengths."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_towers import TEXT_TOWERS, VISION, tower_config
from tokenizers.processors import TemplateProcessing

from modeling_regionmed_clip.towers import build_tower, max_text_length
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

TEXTS = ["small nodule in the left lung", "large effusion"] * 3
POSITIONS = 20


def make_processor(text_pad_to_full_length=False, max_length=POSITIONS, **tokenizer_changes) -> RegionMedClipProcessor:
    tokenizer = train_tokenizer(TEXTS, vocab_size=280, max_length=max_length)  # [PAD] 0, [CLS] 2, [SEP] 3
    for name, value in tokenizer_changes.items():
        setattr(tokenizer, name, value)
    image_processor = RegionMedClipImageProcessor(size=VISION["image_size"], patch_size=VISION["patch_size"])
    return RegionMedClipProcessor(image_processor, tokenizer, text_pad_to_full_length)


def text_config(name, **changes):
    """A tower as `make_processor`'s tokenizer needs it, but for `changes`."""
    positions = POSITIONS + 1 if name in ("roberta", "camembert", "xlm-roberta") else POSITIONS
    fits = {"vocab_size": 280, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return {**TEXT_TOWERS[name][0], **fits, "max_position_embeddings": positions, **changes}


def config_dict(name, text_pooling=None, **changes):
    return tiny_config(text_config=text_config(name, **changes), text_pooling=text_pooling).to_dict()


@pytest.mark.parametrize("name", [name for name in TEXT_TOWERS if name != "clip with the old end id"])
def test_a_tower_made_for_the_tokenizer_passes(name):
    make_processor(text_pad_to_full_length=name == "siglip").check_text_tower(config_dict(name))


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_the_longest_text_is_the_one_the_model_takes(name):
    fields = {**text_config(name), "eos_token_id": 5 if "old" in name else 3}
    limit = max_text_length(build_tower(tower_config(fields), TEXT_TOWERS[name][1]))
    assert limit == POSITIONS
    longer = make_processor(text_pad_to_full_length=True, max_length=limit + 1)
    with pytest.raises(ValueError, match=rf"may have {limit + 1} tokens .* positions for {limit}; set .* = {limit}"):
        longer.check_text_tower(config_dict(name))


def end_first(tokenizer):
    """[SEP] before the text as well as after it, as in tokenizers whose begin and end token are one."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[SEP] $A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    return tokenizer


def no_end(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return tokenizer


MISFITS = {
    "no end token": ({"name": "clip"}, {"eos_token": None}, r"'eos' and the tokenizer's end token has id None"),
    "another end id": ({"name": "clip", "eos_token_id": 7}, {}, r"end token has id 3, the text tower's 7; set"),
    "an end token of the library's old rule": (
        {"name": "clip", "eos_token_id": 2},
        {"eos_token": "[CLS]"},
        r"eos_token_id is 2, which the library reads as 'the largest id.*largest id is \d+ and its end token 2",
    ),
    "another padding id": (
        {"name": "bert", "pad_token_id": 5},
        {},
        r"pads with id 0 and the text tower 'bert' takes id 5 .*pad_token_id = 0",
    ),
    "another padding id for full length": (
        {"name": "siglip", "pad_token_id": 5},
        {"text_pad_to_full_length": True},
        r"pads with id 0 and the text tower 'siglip_text_model' takes id 5",
    ),
    "padding on the left": ({"name": "bert"}, {"padding_side": "left"}, r"pads on the left.*padding_side = 'right'"),
    "a larger vocabulary": (
        {"name": "bert", "vocab_size": 100},
        {},
        r"ids up to \d+ and the text tower 100 token embeddings; call model.resize_token_embeddings",
    ),
    "trimmed padding": ({"name": "siglip"}, {}, r"'last'.*text_pad_to_full_length=True"),
    "texts of any length": ({"name": "bert"}, {"model_max_length": 10**30}, r"may have 10+ tokens.*positions for 20"),
    "the padding that roberta's positions lose": (
        {"name": "roberta", "max_position_embeddings": POSITIONS},
        {},
        rf"'roberta' has positions for {POSITIONS - 1}",
    ),
}


@pytest.mark.parametrize(("tower", "tokenizer", "message"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_refused_with_the_way_out(tower, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**tokenizer).check_text_tower(config_dict(**tower))


@pytest.mark.parametrize("spoil", [end_first, no_end])
def test_texts_that_would_all_be_pooled_at_one_place_are_refused(spoil):
    processor = make_processor()
    spoil(processor.tokenizer)
    with pytest.raises(ValueError, match=r"encodes 'a text' as .* its end token 3 must come once, after the text"):
        processor.check_text_tower(config_dict("clip"))
    processor.check_text_tower(config_dict("clip", text_pooling="mean"))


def test_old_clip_checkpoints_fit_their_tokenizers_whose_end_token_is_the_largest_id():
    processor = make_processor()
    processor.tokenizer.add_special_tokens({"eos_token": "[END]"})
    end = processor.tokenizer.eos_token_id
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [END]", special_tokens=[("[CLS]", 2), ("[END]", end)]
    )
    config = config_dict("clip", eos_token_id=2, vocab_size=300)
    processor.check_text_tower(config)
    processor.tokenizer.add_tokens(["<later>"])  # a larger id than the end token's
    with pytest.raises(ValueError, match=rf"end token {end}. If tokens were added to CLIP's, set .* = {end}"):
        processor.check_text_tower(config)


def test_clips_padding_may_have_any_id():
    make_processor().check_text_tower(config_dict("clip", pad_token_id=1))


def test_saving_both_into_one_folder_checks_the_fit(tmp_path):
    model = tiny_model(text_config=text_config("bert", pad_token_id=5))
    processor = make_processor()
    processor.save_pretrained(tmp_path / "alone")  # nothing to compare with
    model.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="pads with id 0"):
        processor.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="pads with id 0"):
        stage_flat_folder(model, processor, tmp_path / "flat", results=[])
    assert not (tmp_path / "flat").exists()
    model.config.text_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")


def test_a_trained_siglip_text_tower_does_not_see_how_long_its_batch_is():
    model = tiny_model(text_config=text_config("siglip"))
    processor = make_processor(text_pad_to_full_length=True)
    full = processor.encode_texts(TEXTS[:2])
    assert full["input_ids"].shape == (2, POSITIONS)
    trimmed = processor.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    torch.testing.assert_close(
        model.get_text_features(trimmed["input_ids"], trimmed["attention_mask"]).pooler_output,
        model.get_text_features(**full).pooler_output,
        atol=0.0,
        rtol=0.0,
    )
