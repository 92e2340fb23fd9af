"""RegionMedClipForVisualQuestionAnswering: what it reads, what it must not see, and what it gives back."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model
from tiny_questions import ANSWERS, tiny_question_model, tiny_questions

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering, RegionMedClipModel
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipQuestionAnsweringOutput

FLOAT32 = {"atol": 1e-5, "rtol": 0}  # the same maths in another order
NO_PART = ("region_fusion.", "temperatures.", "proposal_head.")  # of the encoder, in an answer


def without_image(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def only(batch, row):
    """One question of the batch, its padding left out."""
    length, num_regions = int(batch["attention_mask"][row].sum()), int(batch["region_mask"][row].sum())
    one = {"input_ids": batch["input_ids"][row : row + 1, :length]}
    one["pixel_values"] = batch["pixel_values"][batch["image_index"][row]][None]
    return one | ({"region_boxes": batch["region_boxes"][row : row + 1, :num_regions]} if num_regions else {})


def test_every_question_gets_a_logit_for_every_answer_and_shows_where_it_looked():
    batch, model = tiny_questions(), tiny_question_model()
    output = model(**batch, labels=torch.rand(5, 4))
    order = [field.name for field in fields(RegionMedClipQuestionAnsweringOutput)]
    assert list(output) == order
    assert output.logits.shape == (5, len(ANSWERS))
    torch.testing.assert_close(output.region_attention.sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]))
    assert output.region_attention[1, 1] == 0  # padding
    assert output.patch_attention.shape == (5, 4, 4)
    torch.testing.assert_close(output.patch_attention.sum((1, 2)), torch.ones(5))
    assert output.vision_model_output.pooler_output.shape == (3, 16)
    assert output.text_model_output.pooler_output.shape == (5, 16)
    assert torch.equal(output.region_mask, batch["region_mask"])
    as_tuple = model(**batch, labels=torch.rand(5, 4), return_dict=False)
    assert torch.equal(as_tuple[1], output.logits)


def test_a_batch_equals_its_questions_one_by_one():
    model, batch = tiny_question_model(), tiny_questions()
    together = model(**batch)
    for row in range(5):
        alone = model(**only(batch, row))
        torch.testing.assert_close(alone.logits[0], together.logits[row], **FLOAT32)
        torch.testing.assert_close(alone.patch_attention[0], together.patch_attention[row], **FLOAT32)
        if alone.region_attention is not None:
            shown = together.region_attention[row, : alone.region_attention.shape[1]]
            torch.testing.assert_close(alone.region_attention[0], shown, **FLOAT32)


def test_padding_of_questions_and_regions_changes_nothing():
    model, batch = tiny_question_model(), tiny_questions()
    padded = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 3), value=7)}
    padded["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 3))
    padded["region_boxes"] = torch.cat([batch["region_boxes"], torch.full((5, 2, 4), torch.nan)], dim=1)
    padded["region_mask"] = torch.nn.functional.pad(batch["region_mask"], (0, 2))
    expected, found = model(**batch), model(**padded)
    torch.testing.assert_close(found.logits, expected.logits, **FLOAT32)
    torch.testing.assert_close(found.region_attention[:, :2], expected.region_attention, **FLOAT32)
    model.train()
    model(**padded, labels=torch.ones(5, 4)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_regions_in_another_order_are_the_same_regions():
    model, batch = tiny_question_model(), tiny_questions()
    flipped = {**batch, "region_boxes": batch["region_boxes"].flip(1), "region_mask": batch["region_mask"].flip(1)}
    expected, found = model(**batch), model(**flipped)
    torch.testing.assert_close(found.logits, expected.logits, **FLOAT32)
    torch.testing.assert_close(found.region_attention.flip(1), expected.region_attention, **FLOAT32)


@pytest.fixture
def silenced(monkeypatch):
    """A function: the output of the model for a batch when the readings of the regions where `is_silent` are zero."""

    def run(model, batch, is_silent):
        read = model.answer_head.region_reading.forward
        with monkeypatch.context() as patch:
            heard = ~is_silent[..., None]
            patch.setattr(model.answer_head.region_reading, "forward", lambda *args: read(*args) * heard)
            return model(**batch)

    return run


def test_a_region_that_says_nothing_has_no_share_in_the_answer(silenced):
    is_silent = torch.tensor([[False, True], [False, True], [True, True], [True, True], [True, True]])
    shares = silenced(tiny_question_model(), tiny_questions(), is_silent).region_attention
    torch.testing.assert_close(shares[0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(shares[3], torch.tensor([0.5, 0.5]))  # nothing is changed by either


def test_the_share_of_a_region_is_how_far_leaving_it_out_moves_the_probabilities(silenced):
    model, batch = tiny_question_model(), tiny_questions()
    whole = model(**batch)
    without = [silenced(model, batch, torch.arange(2).eq(left_out).expand(5, 2)).logits for left_out in (0, 1)]
    moved = torch.stack([(one.sigmoid() - whole.logits.sigmoid()).abs().sum(1) for one in without], dim=1)
    has_two = batch["region_mask"].all(1)
    expected = (moved / moved.sum(1, keepdim=True))[has_two]
    torch.testing.assert_close(whole.region_attention[has_two], expected, atol=1e-4, rtol=0)


def test_an_answer_depends_on_the_question_the_image_and_the_regions():
    model, batch = tiny_question_model(), tiny_questions()
    expected = model(**batch).logits
    for name, other in (
        ("input_ids", (batch["input_ids"] - 1) * batch["attention_mask"]),
        ("pixel_values", -batch["pixel_values"]),
        ("image_index", torch.tensor([1, 2, 2, 0, 0])),
    ):
        changed = model(**{**batch, name: other}).logits
        assert ((changed - expected).abs().amax(1) > 1e-3).all(), name
    moved = {**batch, "region_boxes": batch["region_boxes"].flip(-1).roll(2, -1).flip(-1) + 0.1}
    differs = (model(**moved).logits - expected).abs().amax(1) > 1e-4
    assert differs.tolist() == batch["region_mask"].any(1).tolist()


def test_no_region_at_all_is_the_same_as_no_region_of_the_question():
    model, batch = tiny_question_model(), tiny_questions()
    nowhere = {**batch, "region_mask": torch.zeros_like(batch["region_mask"])}
    masked = model(**nowhere)
    del batch["region_boxes"], batch["region_mask"]
    without = model(**batch)
    torch.testing.assert_close(masked.logits, without.logits, **FLOAT32)
    assert masked.region_attention.eq(0).all()
    assert without.region_attention is None
    assert without.region_mask is None


def test_a_question_alone_is_answered_without_an_image():
    model, batch = tiny_question_model(), tiny_questions()
    output = model(**without_image(batch))
    assert output.logits.shape == (5, 4)
    assert output.patch_attention is None
    assert output.vision_model_output is None
    torch.testing.assert_close(output.logits[:1], model(input_ids=batch["input_ids"][:1]).logits, **FLOAT32)
    assert not torch.allclose(output.logits, model(**batch).logits, atol=1e-3)


def test_each_image_and_each_question_passes_its_tower_once():
    model, batch, rows = tiny_question_model(), tiny_questions(), []
    for tower in (model.regionmed_clip.vision_model, model.regionmed_clip.text_model):
        tower.register_forward_hook(lambda *call: rows.append(len(call[-1].last_hidden_state)))
    model(**batch)
    assert rows == [5, 3]  # questions, then images


def test_the_loss_is_the_binary_cross_entropy_summed_over_answers_and_averaged_over_questions():
    model, batch = tiny_question_model(), tiny_questions()
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 0.3, 0.6, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    output = model(**batch, labels=labels)
    right = output.logits.double().sigmoid()
    terms = -(labels * right.log() + (1 - labels) * (1 - right).log())
    torch.testing.assert_close(output.loss.double(), terms.sum(1).mean(), atol=1e-5, rtol=0)


def test_an_untrained_head_thinks_each_answer_as_likely_as_chance():
    model = tiny_question_model(id2label={i: str(i) for i in range(50)}, label2id={str(i): i for i in range(50)})
    torch.testing.assert_close(model.answer_head.classifier.bias.sigmoid(), torch.full((50,), 0.02))


@pytest.mark.parametrize("what", ["regions", "no regions", "question alone"])
def test_every_parameter_of_the_head_gets_a_gradient_and_with_regions_none_is_zero(what):
    model, batch = tiny_question_model().train(), tiny_questions()
    if what == "no regions":
        del batch["region_boxes"], batch["region_mask"]
    elif what == "question alone":
        batch = without_image(batch)
    model(**batch, labels=torch.rand(5, 4)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("answer_head."):
            assert parameter.grad is not None, name
            assert what != "regions" or parameter.grad.abs().sum() > 0, name
        elif what != "question alone" and not name.removeprefix("regionmed_clip.").startswith(NO_PART):
            assert parameter.grad is not None, name


def test_no_gradient_is_summed_in_the_order_of_threads():
    """The backward of advanced indexing (`x[index]`) adds by atomics on a CPU: two equal runs would differ."""
    loss = tiny_question_model().train()(**tiny_questions(), labels=torch.rand(5, 4)).loss
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {node.name() for node in found}
    assert "IndexSelectBackward0" in names
    assert not names & {"IndexBackward0", "IndexPutBackward0", "PutBackward0"}


def test_what_the_encoder_proposes_is_used_as_if_it_were_given_and_learns_nothing_of_it():
    model, batch = tiny_question_model(), tiny_questions()
    model.config.proposal_threshold = 0.0  # an untrained head proposes all the same
    del batch["region_boxes"], batch["region_mask"]
    found = model.regionmed_clip.propose_regions(batch["pixel_values"])
    given = {name: found[name][batch["image_index"]] for name in ("region_boxes", "region_mask")}
    proposed, expected = model(**batch, regions="proposed", labels=torch.ones(5, 4)), model(**batch, **given)
    assert given["region_mask"].any()
    torch.testing.assert_close(proposed.logits, expected.logits, **FLOAT32)
    assert torch.equal(proposed.region_boxes, given["region_boxes"])
    proposed.loss.backward()
    assert all(parameter.grad is None for parameter in model.regionmed_clip.proposal_head.parameters())
    model.config.proposal_threshold = 1.0  # now it abstains
    del batch["image_index"]
    batch |= {name: batch[name][:3] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**batch, regions="proposed").logits, model(**batch).logits, **FLOAT32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, "got no input_ids; give a question"),
        ({"pixel_values": None}, "got regions and no pixel_values"),
        ({"image_index": None}, "there are 5 questions and 3 images"),
        ({"image_index": torch.zeros(3, dtype=torch.int64)}, r"image_index has shape \(3,\)"),
        ({"image_index": torch.zeros(5)}, "type torch.float32"),
        ({"regions": "given", "region_boxes": None}, "regions='given'; regions is 'proposed' or left out"),
        ({"regions": "proposed"}, "regions='proposed' and region_boxes"),
        ({"region_boxes": None}, "region_mask came without region_boxes"),
        ({"region_boxes": torch.zeros(3, 2, 4)}, r"region_boxes has shape \(3, 2, 4\)"),
        ({"labels": torch.zeros(5, 3)}, r"labels have shape \(5, 3\)"),
        ({"labels": torch.zeros(5, 4, dtype=torch.int64)}, "type torch.int64; .* float"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_question_model()(**{**tiny_questions(), **changes})


def test_masks_of_regions_count_by_their_patches():
    model, batch = tiny_question_model(), tiny_questions()
    from_boxes = model(**batch).logits
    coverage = torch.zeros(5, 2, 4, 4)
    coverage[..., 0, 0] = 1.0
    differs = (model(**batch, region_coverage=coverage).logits - from_boxes).abs().amax(1) > 1e-5
    assert differs.tolist() == batch["region_mask"].any(1).tolist()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    model, batch = tiny_question_model(), tiny_questions()
    expected = model(**batch).logits
    model.set_attn_implementation({"": implementation, "vision_config": "sdpa", "text_config": "sdpa"})
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, **FLOAT32)


def test_in_bfloat16_a_batch_equals_its_questions():
    model, batch = tiny_question_model().bfloat16(), tiny_questions()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    together = model(**batch).logits
    assert together.dtype == torch.bfloat16
    for row in range(5):
        torch.testing.assert_close(model(**only(batch, row)).logits[0], together[row], atol=3e-2, rtol=3e-2)


def test_a_siglip_text_tower_attends_to_the_words_alone():
    text = {"model_type": "siglip_text_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 12, "pad_token_id": 1}
    model, batch = tiny_question_model(text_config={**text, "projection_size": 32}), tiny_questions()
    words = batch["input_ids"][:1]
    padded = torch.nn.functional.pad(words, (0, 6), value=1)
    expected = model(input_ids=words, attention_mask=torch.ones_like(words)).logits
    torch.testing.assert_close(model(input_ids=padded).logits, expected, **FLOAT32)
    torch.testing.assert_close(model(input_ids=words).logits, expected, **FLOAT32)


def test_saving_and_loading_is_bit_equal_and_keeps_the_answers(tmp_path):
    model, batch = tiny_question_model(answer_num_layers=1, answer_hidden_size=24), tiny_questions()
    model.save_pretrained(tmp_path)
    loaded, info = RegionMedClipForVisualQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.id2label == dict(enumerate(ANSWERS))
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_it_starts_from_an_encoder_and_an_encoder_loads_from_it(tmp_path):
    encoder = tiny_model()
    encoder.save_pretrained(tmp_path / "encoder")
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model, info = RegionMedClipForVisualQuestionAnswering.from_pretrained(
        tmp_path / "encoder", output_loading_info=True, **names
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"answer_head"}
    assert not info["unexpected_keys"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.regionmed_clip.state_dict()[name], tensor), name
    assert model(**tiny_questions()).logits.shape == (5, 2)
    assert all(parameter.isfinite().all() for parameter in model.answer_head.parameters())
    model.save_pretrained(tmp_path / "answers")
    back, info = RegionMedClipModel.from_pretrained(tmp_path / "answers", output_loading_info=True)
    assert not any(info.values())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_the_token_embeddings_can_grow():
    model = tiny_question_model()
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB_SIZE + 3
    ids = torch.full((3, 4), VOCAB_SIZE + 2)
    assert model(input_ids=ids, pixel_values=tiny_questions()["pixel_values"]).logits.isfinite().all()


def test_checkpointed_blocks_have_the_same_gradients():
    gradients = []
    for is_checkpointed in (False, True):
        model, batch = tiny_question_model(answer_dropout=0.0).train(), tiny_questions()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        model(**batch, labels=torch.ones(5, 4)).loss.backward()
        gradients.append(model.answer_head.blocks[0].self_attention.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, **FLOAT32)


def test_it_learns_what_only_the_marked_region_tells():
    """One half of each image is bright; "is it bright here?" depends on the image and on the region together."""
    torch.manual_seed(0)
    model = tiny_question_model(answer_dropout=0.0).train()
    halves = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    bright, asked = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    pixels = torch.zeros(4, 3, 48, 48)
    pixels[bright == 0, :, :, :24] = 1.0
    pixels[bright == 1, :, :, 24:] = 1.0
    batch = {"input_ids": torch.full((4, 3), 9), "pixel_values": pixels, "region_boxes": halves[asked][:, None]}
    labels = torch.nn.functional.one_hot((bright != asked).long(), 4).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model(**batch).logits.argmax(1), (bright != asked).long())
    del batch["region_boxes"]
    assert model(**batch, labels=labels).loss > 1.0  # without the region it cannot know: two answers of even odds
