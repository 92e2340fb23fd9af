"""rank_answers: statements compared with the image, its regions, or the one region that is asked about."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from tiny_questions import tiny_question_model

UNIT = torch.nn.functional.normalize
FLOAT32 = {"atol": 1e-5, "rtol": 0}


def fused_model():
    model = tiny_model()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    return model


def statements(model, batch):
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return UNIT(texts, dim=-1), {
        "answer_input_ids": batch["input_ids"],
        "answer_attention_mask": batch["attention_mask"],
    }


def test_without_regions_it_is_the_cosine_of_image_and_statement():
    model, batch = fused_model(), tiny_batch()
    texts, answers = statements(model, batch)
    image = UNIT(model.get_image_features(batch["pixel_values"]).pooler_output, dim=-1)
    found = model.rank_answers(batch["pixel_values"], **answers)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, image @ texts.t(), **FLOAT32)


def test_one_region_alone_speaks_for_itself_and_several_with_their_image():
    model, batch = fused_model(), tiny_batch()  # with 2, 1 and 0 regions
    texts, answers = statements(model, batch)
    regions = {name: batch[name] for name in ("region_boxes", "region_mask")}
    found = model.rank_answers(batch["pixel_values"], **answers, **regions)
    fused = UNIT(model.get_image_features(batch["pixel_values"], **regions).pooler_output, dim=-1)
    region = UNIT(model.get_region_features(batch["pixel_values"], **regions).pooler_output[1, 0], dim=-1)
    torch.testing.assert_close(found[0], fused[0] @ texts.t(), **FLOAT32)
    torch.testing.assert_close(found[1], region @ texts.t(), **FLOAT32)
    torch.testing.assert_close(found[2], model.rank_answers(batch["pixel_values"], **answers)[2], **FLOAT32)


def test_proposed_regions_join_their_image_even_where_there_is_one_alone():
    model, batch = fused_model(), tiny_batch()
    model.config.proposal_threshold = 0.0
    texts, answers = statements(model, batch)
    found = model.rank_answers(batch["pixel_values"], **answers, regions="proposed")
    fused = model.get_image_features(batch["pixel_values"], regions="proposed").pooler_output
    torch.testing.assert_close(found, UNIT(fused, dim=-1) @ texts.t(), **FLOAT32)


def test_a_model_with_an_answer_head_ranks_as_its_encoder():
    model, batch = tiny_question_model(), tiny_batch()
    answers = {"answer_input_ids": batch["input_ids"]}
    assert torch.equal(
        model.rank_answers(batch["pixel_values"], **answers),
        model.regionmed_clip.rank_answers(batch["pixel_values"], **answers),
    )


def test_regions_both_given_and_proposed_are_refused():
    batch = tiny_batch()
    with pytest.raises(ValueError, match="rank_answers got regions='proposed' and region_boxes"):
        tiny_model().rank_answers(
            batch["pixel_values"], batch["input_ids"], region_boxes=batch["region_boxes"], regions="proposed"
        )
