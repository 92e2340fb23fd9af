"""Temperatures and biases: one of each term, kept between their bounds, felt by loss and logits."""

import math

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model

from modeling_regionmed_clip.loss_terms import CONTRASTIVE_TERMS, TEXT_TERMS
from modeling_regionmed_clip.shared_space import Temperatures

NEGATIVES = {"negative_text_index": torch.tensor([[[1], [2]], [[0], [-1]], [[-1], [-1]]])}


@pytest.mark.parametrize(("value", "kept"), [(0.2, 1.0), (7.0, 7.0), (300.0, 50.0)])
@pytest.mark.parametrize("name", TEXT_TERMS)
def test_every_inverse_temperature_stays_between_one_and_the_maximum(name, value, kept):
    temperatures = Temperatures(tiny_config(logit_scale_max=50.0))
    torch.nn.init.constant_(getattr(temperatures, name), math.log(value))
    temperatures.clamp_()
    assert temperatures(name).item() == pytest.approx(kept, rel=1e-6)


def test_a_maximum_below_one_is_kept_all_the_same():
    temperatures = Temperatures(tiny_config(logit_scale_max=0.5))
    temperatures.clamp_()
    assert temperatures("region_text").item() == pytest.approx(0.5, rel=1e-6)


def test_there_are_biases_for_the_pairwise_terms_only_where_the_configuration_has_one():
    assert all(Temperatures(tiny_config()).bias(name) is None for name in TEXT_TERMS)
    temperatures = Temperatures(tiny_config(logit_bias_init_value=-10.0))
    assert all(temperatures.bias(name).tolist() == [-10.0] for name in CONTRASTIVE_TERMS)
    assert temperatures.bias("hard_negatives") is None


def test_all_logits_have_the_bias_of_their_term():
    without, batch = tiny_model(), tiny_batch()
    model = tiny_model(logit_bias_init_value=0.0)
    model.load_state_dict(without.state_dict(), strict=False)
    biases = {"image_text": -1.0, "fused_image_text": -2.0, "region_text": -3.0}
    for name, value in biases.items():
        torch.nn.init.constant_(model.temperatures.bias(name), value)
    plain, found = without(**batch), model(**batch)
    for field, name in (
        ("logits_per_image", "image_text"),
        ("logits_per_fused_image", "fused_image_text"),
        ("logits_per_region", "region_text"),
    ):
        torch.testing.assert_close(found[field], plain[field] + biases[name], atol=1e-5, rtol=0)  # float32


def test_a_bias_has_a_gradient_from_a_sigmoid_term_and_none_of_its_own_from_info_nce():
    model = tiny_model(logit_bias_init_value=-5.0)
    model(**tiny_batch(), **NEGATIVES, return_loss=True).loss.backward()
    assert {name: value.grad.item() != 0 for name, value in model.temperatures.named_parameters()} == {
        **dict.fromkeys(TEXT_TERMS, True),
        **{f"{name}_bias": False for name in CONTRASTIVE_TERMS},
    }
    embeddings = model(**tiny_batch())
    batch = {"image": embeddings.image_embeds, "image_keys": torch.tensor([11, 12, 12]),
             "text": embeddings.text_embeds, "text_keys": torch.tensor([11, 12]),
             "text_mask": torch.ones(2, dtype=torch.bool)}  # fmt: skip
    model.zero_grad()
    model.compute_terms(batch, ("image_text",), kinds={"image_text": "sigmoid"})["image_text"].loss.backward()
    assert model.temperatures.image_text_bias.grad.item() != 0


def test_hard_negatives_are_a_term_of_the_loss_where_a_batch_has_them():
    model = tiny_model()
    assert "hard_negatives" not in model(**tiny_batch(), return_loss=True).loss_terms
    terms = model(**tiny_batch(), **NEGATIVES, return_loss=True).loss_terms
    assert terms["hard_negatives"].item() > 0
