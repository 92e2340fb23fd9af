"""Text towers: where each pools, that padding changes nothing, that texts stay apart, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config, tiny_model
from tiny_towers import (
    BOS,
    END,
    MAX_LENGTH,
    PAD,
    TEXT_TOWERS,
    VISION_TOWERS,
    model_with,
    saved_tower,
    tower_config,
)

from modeling_regionmed_clip.towers import build_tower, max_text_length, pool_text

EXACT = {"atol": 0.0, "rtol": 0.0}  # float32
CLOSE = {"atol": 1e-5, "rtol": 0.0}  # float32
WORDS = st.integers(3, END - 1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Name -> a random checkpoint of that text tower, as the library saved and loaded it."""
    return {
        name: saved_tower(fields, tmp_path_factory.mktemp("tower"), seed)
        for seed, (name, (fields, _)) in enumerate(TEXT_TOWERS.items())
    }


@pytest.fixture(scope="module")
def models(checkpoints):
    """Name -> a model with that checkpoint as its text tower."""
    return {name: model_with(None, tower) for name, tower in checkpoints.items()}


def tensors(texts, length=None):
    """input_ids and attention_mask of lists of words: begin, words, end, padding up to `length`."""
    rows = [[BOS, *words, END] for words in texts]
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def embed(model, texts, length=None):
    with torch.no_grad():
        return model.get_text_features(**tensors(texts, length)).pooler_output


TEXTS = [[5, 9, 7], [5, 7, 9], [9], [38, 5, 6, 20, 21, 4]]


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_the_pooling_follows_from_the_type(models, name):
    assert models[name].config.text_pooling == TEXT_TOWERS[name][1]


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_the_pooled_state_is_the_librarys_own(checkpoints, models, name):
    tower, pooling = checkpoints[name], models[name].config.text_pooling
    inputs = tensors(TEXTS, MAX_LENGTH)
    if pooling == "last":  # SigLIP was trained without a mask, and is called without one
        inputs.pop("attention_mask")
    theirs = tower(**inputs)
    expected = {
        "eos": lambda: theirs.pooler_output,
        "last": lambda: theirs.pooler_output,
        "cls": lambda: theirs.last_hidden_state[:, 0],
        "mean": lambda: torch.stack(
            [states[: len(words) + 2].mean(dim=0) for states, words in zip(theirs.last_hidden_state, TEXTS)]
        ),
    }[pooling]()
    model = models[name]
    ours = model.get_text_features(**tensors(TEXTS, MAX_LENGTH)).pooler_output
    torch.testing.assert_close(ours, model.text_projection(expected), **(CLOSE if pooling == "mean" else EXACT))


def test_the_dense_pooling_layer_of_a_bert_is_kept_on_demand(checkpoints):
    tower = checkpoints["bert"]
    model = model_with(None, tower, text_pooling="pooler", text_projection_type="identity", projection_dim=32)
    expected = tower(**tensors(TEXTS)).pooler_output
    torch.testing.assert_close(embed(model, TEXTS), expected, **EXACT)
    with pytest.raises(ValueError, match=r"'pooler' needs the dense pooling layer.*'distilbert' has none"):
        tiny_model(text_config=TEXT_TOWERS["distilbert"][0], text_pooling="pooler")


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_padding_never_changes_an_embedding(models, name):
    model = models[name]
    padded = embed(model, TEXTS, MAX_LENGTH)
    torch.testing.assert_close(embed(model, TEXTS), padded, **CLOSE)
    for i, words in enumerate(TEXTS):
        torch.testing.assert_close(embed(model, [words])[0], padded[i], **CLOSE)
        alone = model.get_text_features(tensors([words])["input_ids"]).pooler_output  # no mask: no padding
        torch.testing.assert_close(alone[0], padded[i], **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_siglip_pooled_otherwise_loses_its_head_and_heeds_the_mask(checkpoints, pooling):
    tower = checkpoints["siglip"]
    model = model_with(None, tower, text_pooling=pooling)
    assert not any(name.startswith("head") for name, _ in model.text_model.named_parameters())
    states = tower(**tensors(TEXTS)).last_hidden_state
    expected = states[2, :3].mean(dim=0) if pooling == "mean" else states[2, 0]
    torch.testing.assert_close(embed(model, TEXTS)[2], model.text_projection(expected).detach(), **CLOSE)
    torch.testing.assert_close(embed(model, TEXTS[2:3]), embed(model, TEXTS)[2:3], **CLOSE)


@settings(max_examples=15)
@given(texts=st.lists(st.lists(WORDS, min_size=1, max_size=MAX_LENGTH - 2), min_size=2, max_size=6, unique_by=tuple))
def test_two_texts_never_get_equal_embeddings(models, texts):
    for name, model in models.items():
        embeddings = embed(model, texts)
        assert torch.pdist(embeddings).min() > 1e-5 * embeddings.norm(dim=-1).max(), name


def test_clip_texts_cut_off_before_their_end_token_stay_apart(models):
    ids = torch.tensor([[BOS, 5, 9, 7], [BOS, 5, 7, 9], [BOS, 6, 6, 6], [BOS, 5, 9, PAD]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    texts = models["clip"].get_text_features(ids, mask).pooler_output
    assert torch.pdist(texts).min() > 1e-3
    unpadded = models["clip"].get_text_features(ids[3:, :3]).pooler_output
    torch.testing.assert_close(texts[3:], unpadded, **CLOSE)


def test_the_end_token_is_the_first_one_even_if_texts_are_padded_with_it(checkpoints, models):
    ids = torch.tensor([[BOS, 5, 9, END, END, END]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    for name in ("clip", "clip with the old end id"):
        expected = checkpoints[name](input_ids=ids[:, :4]).last_hidden_state[:, 3]
        states = models[name].text_model(input_ids=ids, attention_mask=mask)
        pooled = pool_text(states, ids, mask, "eos", models[name].config.text_config)
        torch.testing.assert_close(pooled, expected, **CLOSE)


@pytest.mark.parametrize("name", [name for name in TEXT_TOWERS if name != "another encoder"])
def test_the_longest_text_is_as_long_as_the_library_takes(checkpoints, models, name):
    limit = max_text_length(models[name].text_model)
    assert limit == MAX_LENGTH
    ids = torch.full((1, limit), 5)
    assert models[name].get_text_features(ids).pooler_output.isfinite().all()
    with pytest.raises(ValueError, match=rf"{limit + 1} tokens a text and the text tower {limit} positions; truncate"):
        models[name].get_text_features(torch.full((1, limit + 1), 5))
    if name not in ("deberta-v2", "modernbert"):  # relative positions: there the limit is what its training saw
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            checkpoints[name](input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_every_text_parameter_gets_a_gradient(models, name):
    model = tiny_model(text_config=TEXT_TOWERS[name][0]).train()
    model.get_text_features(**tensors(TEXTS)).pooler_output.square().sum().backward()
    named = dict(model.text_model.named_parameters())
    # softmax does not see what all keys share
    zero_by_mathematics = {n for n in named if n.endswith(("k_proj.bias", "key.bias", "k_lin.bias"))}
    still = {n for n, parameter in named.items() if parameter.grad is None or not parameter.grad.abs().max() > 0}
    assert still <= zero_by_mathematics


BERT, CLIP = TEXT_TOWERS["bert"][0], TEXT_TOWERS["clip"][0]
REFUSED = [
    ({"text_config": {"model_type": "t5"}}, r"'t5', an encoder-decoder; a text tower is an encoder"),
    ({"text_config": {"model_type": "bart"}}, r"'bart', an encoder-decoder"),
    ({"text_config": {"model_type": "gpt2"}}, r"'gpt2', a decoder"),
    ({"text_config": {"model_type": "llama"}}, r"'llama', a decoder"),
    ({"text_config": {**BERT, "is_decoder": True}}, r"'bert', a decoder"),
    ({"text_config": {"model_type": "siglip2_text_model"}}, r"siglip2_text_model'.*NaFlex"),
    ({"text_config": {"model_type": "siglip"}}, r"'siglip', a model of several towers; give its text_config instead"),
    ({"text_config": VISION_TOWERS["vit"][0]}, r"text_config has model_type 'vit'.*vocab_size None"),
    ({"text_config": CLIP, "text_pooling": "cls"}, r"'cls' and the text tower 'clip_text_model' is causal"),
    ({"text_config": BERT, "text_pooling": "last"}, r"'last', which is how siglip_text_model pools.*'bert'"),
    ({"text_config": {**TEXT_TOWERS["siglip"][0], "pad_token_id": None}}, r"text_config has no pad_token_id"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
@pytest.mark.parametrize("as_object", [False, True])
def test_what_is_no_text_encoder_is_refused_by_name(changes, message, as_object):
    fields = dict(changes["text_config"])
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**changes, "text_config": tower_config(fields) if as_object else fields})


def test_pooling_at_an_end_token_needs_one():
    with pytest.raises(ValueError, match=r"text_pooling 'eos' needs one end token.*\(bert\) has eos_token_id None"):
        build_tower(tower_config({**BERT, "eos_token_id": None}), "eos")
    with pytest.raises(ValueError, match=r"eos_token_id \[2, 39\]"):
        build_tower(tower_config({**CLIP, "eos_token_id": [2, 39]}), "eos")
    model = tiny_model(text_config=BERT, text_pooling="eos")
    assert torch.pdist(embed(model, TEXTS)).min() > 1e-4


def test_a_widened_head_of_siglip_reaches_the_projection(models):
    assert models["siglip"].config.pooled_text_width == models["siglip"].text_projection.in_features == 24
