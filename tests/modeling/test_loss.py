"""The terms of a batch against other formulas and hand sums, and how the batch comes from a model's outputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from modeling_regionmed_clip.contrastive_losses import info_nce_loss
from modeling_regionmed_clip.contrastive_pairs import PairRules
from modeling_regionmed_clip.loss_regionmed_clip import (
    GATHERED,
    batch_terms,
    contrastive_terms,
    count_texts_once,
    first_occurrence_mask,
    loss_inputs,
    values_at,
)
from modeling_regionmed_clip.outputs_regionmed_clip import RegionMedClipOutput

ONE = torch.ones(1)


def multi_positive_info_nce(rows, candidates, keys, candidate_keys, scale, row_mask=None, candidate_mask=None):
    rules = PairRules(keys[:, None], candidate_keys, row_mask, candidate_mask)
    return info_nce_loss(rows, candidates, rules, scale)


def unit_rows(num_rows: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_distinct_keys_give_the_loss_of_clip():
    images, texts, keys = unit_rows(5, 0), unit_rows(5, 1), torch.arange(5)
    logits = 10 * images @ texts.t()
    expected = (functional.cross_entropy(logits, keys) + functional.cross_entropy(logits.t(), keys)) / 2
    term = multi_positive_info_nce(images, texts, keys, keys, 10 * ONE)
    torch.testing.assert_close(term.loss, expected, atol=1e-6, rtol=0)
    assert (int(term.num_positives), int(term.num_negatives)) == (5, 20)


def test_two_images_of_one_text_share_it_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0]])
    # One column: log softmax over it is 0. Text to image: logits (1, 0), both positive.
    to_image = -0.5 * sum(value - math.log(math.e + 1) for value in (1.0, 0.0))
    term = multi_positive_info_nce(images, texts, torch.tensor([7, 7]), torch.tensor([7]), ONE)
    assert term.loss.item() == pytest.approx((0.0 + to_image) / 2, abs=1e-6)


def test_a_masked_row_and_column_change_nothing():
    images, texts, keys = unit_rows(4, 0), unit_rows(4, 1), torch.arange(4)
    plain = multi_positive_info_nce(images[:3], texts[:3], keys[:3], keys[:3], ONE)
    mask = torch.tensor([True, True, True, False])
    masked = multi_positive_info_nce(images, texts, keys, keys, ONE, mask, mask)
    torch.testing.assert_close(masked.loss, plain.loss, atol=1e-6, rtol=0)
    assert (masked.num_positives, masked.num_negatives) == (plain.num_positives, plain.num_negatives)


def test_a_batch_without_positives_has_zero_loss_and_a_finite_gradient():
    images = unit_rows(3, 0).requires_grad_()
    nobody = torch.zeros(3, dtype=torch.bool)
    term = multi_positive_info_nce(images, unit_rows(2, 1), torch.arange(3), torch.tensor([8, 9]), ONE, nobody)
    term.loss.backward()
    assert term.loss.item() == 0.0
    assert torch.equal(images.grad, torch.zeros_like(images))


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_first_occurrences_are_those_of_a_python_set(values, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    seen, expected = set(), []
    for value, is_taken in zip(values, mask):
        expected.append(is_taken and value not in seen)
        seen |= {value} if is_taken else set()
    found = first_occurrence_mask(torch.tensor(values, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool))
    assert found.tolist() == expected


def test_repeating_a_text_does_not_change_the_loss_once_it_is_counted_once():
    images, texts = unit_rows(3, 0), unit_rows(2, 1)
    keys, text_keys = torch.tensor([5, 6, 6]), torch.tensor([5, 6])
    once = multi_positive_info_nce(images, texts, keys, text_keys, ONE)
    repeated_keys = torch.tensor([5, 6, 5, 6])
    first = first_occurrence_mask(repeated_keys)
    repeated = multi_positive_info_nce(images, texts.repeat(2, 1), keys, repeated_keys, ONE, candidate_mask=first)
    torch.testing.assert_close(repeated.loss, once.loss, atol=1e-6, rtol=0)


def test_an_image_is_drawn_to_the_texts_of_all_its_regions_by_hand():
    embeddings = {
        "image": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "image_keys": torch.tensor([5, 6]),
        "image_region_keys": torch.tensor([[7, 8], [-1, -1]]),  # the second image has no region, but a caption
        "region_text": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        "region_text_keys": torch.tensor([7, 8, -1]),  # the third is a placeholder
        "region_text_mask": torch.tensor([True, True, False]),
    }
    term = contrastive_terms(embeddings, {"image_region_text": ONE}, ("image_region_text",))["image_region_text"]
    to_text = -0.5 * sum(value - math.log(math.e + 1) for value in (1.0, 0.0))  # the first image's two positives
    to_image = -0.5 * ((1.0 - math.log(math.e + 1)) + (0.0 - math.log(math.e + 1)))
    assert term.loss.item() == pytest.approx((to_text + to_image) / 2, abs=1e-6)
    assert (int(term.num_positives), int(term.num_negatives)) == (2, 2)


def test_regions_without_text_get_no_key():
    keys = values_at(torch.tensor([31, 32]), torch.tensor([[1, -1], [0, 1]]), -1)
    assert keys.tolist() == [[32, -1], [31, 32]]


@pytest.mark.parametrize("name", ["image_text", "fused_image_text", "image_region_text"])
def test_an_image_of_which_nothing_is_known_takes_no_part(name):
    images, texts = unit_rows(3, 0), unit_rows(2, 1)
    known = {
        "image": images,
        "fused_image": images,
        "image_keys": torch.tensor([5, 6, 6]),
        "image_region_keys": torch.tensor([[5], [6], [-1]]),  # the third has a caption and no region
    }
    shared = {f"{kind}{part}": value for kind in ("text", "region_text") for part, value in (
        ("", texts), ("_keys", torch.tensor([5, 6])), ("_mask", torch.ones(2, dtype=torch.bool))
    )}  # fmt: skip
    unknown = {
        "image": torch.cat([images, unit_rows(1, 7)]),
        "fused_image": torch.cat([images, unit_rows(1, 7)]),
        "image_keys": torch.tensor([5, 6, 6, -1]),
        "image_region_keys": torch.tensor([[5], [6], [-1], [-1]]),
    }
    one, other = (contrastive_terms(shared | rows, {name: ONE}, (name,))[name] for rows in (known, unknown))
    torch.testing.assert_close(other.loss, one.loss, atol=1e-6, rtol=0)  # float32
    assert (int(other.num_positives), int(other.num_negatives)) == (int(one.num_positives), int(one.num_negatives))


SHADOW, FLUID, LEFT, RIGHT = 1, 2, 3, 4  # values of the attributes finding, side
FIRST, SECOND, THIRD, FALSE = 21, 22, 23, 24  # keys of region texts; the last is a hard negative


def outputs(num_texts: int = 2, num_region_texts: int = 4) -> RegionMedClipOutput:
    """Of two images with two regions each."""
    return RegionMedClipOutput(
        image_embeds=unit_rows(2, 0),
        fused_image_embeds=unit_rows(2, 1),
        text_embeds=unit_rows(num_texts, 2),
        region_embeds=unit_rows(4, 3).view(2, 2, 8),
        region_text_embeds=unit_rows(num_region_texts, 4),
    )


def batch_of_two(**changes) -> dict[str, torch.Tensor]:
    """Regions with the texts 0, 1 and 2; text 3 is a hard negative of the first region; the last region is padding."""
    tensors = {
        "region_mask": torch.tensor([[True, True], [True, False]]),
        "region_text_index": torch.tensor([[0, 1], [2, -1]]),
        "text_keys": torch.tensor([11, 12]),
        "region_text_keys": torch.tensor([FIRST, SECOND, THIRD, FALSE]),
        "text_facts": torch.tensor([[[SHADOW, 0], [FLUID, RIGHT]], [[SHADOW, LEFT], [0, 0]]]),
        "region_text_facts": torch.tensor([[SHADOW, 0], [FLUID, RIGHT], [SHADOW, LEFT], [0, 0]]),
        "negative_text_index": torch.tensor([[[3], [-1]], [[2], [3]]]),
    }
    return loss_inputs(outputs(), **(tensors | changes))


def counts(batch: dict[str, torch.Tensor], name: str, **settings) -> tuple[int, int, int]:
    """Positives, negatives, masked pairs of a term."""
    term = contrastive_terms(batch, {name: ONE}, (name,), **settings)[name]
    return int(term.num_positives), int(term.num_negatives), int(term.num_masked)


def test_the_pairs_of_every_term_by_hand():
    batch = batch_of_two()
    assert counts(batch, "image_text") == (2, 2, 0)  # both captions say something that the other does not
    # region 0 (shadow): its text +, fluid -, left shadow masked (says more), FALSE - (its own); region 1 (fluid):
    # its text +, the shadows -, FALSE masked; region 2 (left shadow): +, fluid -, shadow masked, FALSE masked.
    assert counts(batch, "region_text") == (3, 2 + 2 + 1, 1 + 1 + 2)
    # image 0 states shadow and fluid: both +, left shadow masked, FALSE - (of its region); image 1: left shadow +,
    # shadow masked, fluid -, FALSE masked.
    assert counts(batch, "image_region_text") == (3, 1 + 1, 1 + 2)
    assert counts(batch, "hard_negatives") == (1, 1, 0)  # that of region 2 is its own text, the padding has none


def test_the_caption_of_an_image_without_regions_masks_the_region_texts_that_it_may_bear():
    keys = {"image_region_keys": torch.tensor([[FIRST, SECOND], [-1, -1]])}
    facts = {"image_region_facts": torch.tensor([[[SHADOW, 0], [FLUID, RIGHT]], [[0, 0], [0, 0]]])}
    batch = batch_of_two(**keys, **facts, negative_text_index=None)
    # image 1 is captioned "left shadow": shadow and left shadow may be true of it, fluid and FALSE (here: a text like
    # another, of unknown facts) are not. Image 0: two positives, left shadow masked, FALSE negative.
    assert counts(batch, "image_region_text") == (2, 1 + 2, 1 + 2)


def test_regions_that_the_step_left_out_still_count_for_their_image():
    batch = batch_of_two(image_region_keys=torch.tensor([[FIRST, SECOND, THIRD], [THIRD, FALSE, -1]]),
                         image_region_facts=torch.zeros(2, 3, 2, dtype=torch.int64))  # fmt: skip
    assert counts(batch, "image_region_text")[0] == 3 + 2


def test_a_text_that_a_left_out_region_states_is_known_by_what_that_region_states():
    nobody_names_it = torch.full((2, 2, 1), -1)
    batch = batch_of_two(
        negative_text_index=nobody_names_it,
        image_region_keys=torch.tensor([[FIRST, SECOND], [THIRD, FALSE]]),
        image_region_facts=torch.tensor([[[SHADOW, 0], [FLUID, RIGHT]], [[SHADOW, LEFT], [SHADOW, RIGHT]]]),
    )
    # Image 0 states shadow and fluid: both +, left and right shadow say more: masked. Image 1: its two +, shadow
    # masked, fluid -.
    assert counts(batch, "image_region_text") == (4, 1, 3)


def test_a_text_that_takes_part_as_a_hard_negative_has_the_facts_of_its_copy():
    """As after gathering, where the first copy of a text may be one of unknown facts."""
    batch = batch_of_two(negative_text_index=torch.full((2, 2, 1), -1))
    expected = counts(batch, "region_text")
    batch["image_region_facts"] = torch.zeros_like(batch["image_region_facts"])
    batch["region_text"] = torch.cat([batch["region_text"], batch["region_text"][2:3]])
    batch["region_text_keys"] = torch.tensor([FIRST, SECOND, THIRD, FALSE, THIRD])
    batch["region_text_mask"] = torch.tensor([True, True, True, True, False])
    batch["region_text_facts"] = torch.tensor([[SHADOW, 0], [FLUID, RIGHT], [0, 0], [0, 0], [SHADOW, LEFT]])
    assert counts(batch, "region_text") == expected
    assert expected == (3, 4, 2 + 3)  # shadow and left shadow of each other; FALSE, which nobody names, of everyone


def test_keys_of_all_regions_without_their_facts_are_refused():
    with pytest.raises(ValueError, match="image_region_keys and image_region_facts belong together"):
        batch_of_two(image_region_keys=torch.tensor([[FIRST, SECOND, THIRD], [THIRD, -1, -1]]))


def test_texts_that_read_alike_are_one_text_of_one_key_whoever_names_it():
    """Text 1 is the source's in one place and a template's in another; text 2 has a key with it in common."""
    batch = count_texts_once({
        "region_text_fingerprints": torch.tensor([1, 1, 2, 2, 3, 1]),
        "region_text_keys": torch.tensor([30, 20, 30, 40, 50, -1]),
        "region_text_mask": torch.tensor([True, True, True, True, True, False]),  # the last is a placeholder
        "region_keys": torch.tensor([40, 50, -1]),
        "image_region_keys": torch.tensor([[20, 77], [-1, 30]]),  # 77: of a text that is not in the batch
        "region_negative_keys": torch.tensor([[30], [-1], [50]]),
    })  # fmt: skip
    assert batch["region_text_mask"].tolist() == [True, False, True, False, True, False]
    assert batch["region_text_keys"].tolist() == [20, 20, 20, 20, 50, -1]
    assert batch["region_keys"].tolist() == [20, 50, -1]
    assert batch["image_region_keys"].tolist() == [[20, 77], [-1, 20]]
    assert batch["region_negative_keys"].tolist() == [[20], [-1], [50]]


def test_the_similarity_filter_masks_all_but_own_texts_and_own_hard_negatives():
    batch = batch_of_two() | {"region_text": unit_rows(1, 5).expand(4, -1)}
    assert counts(batch, "region_text", similarity_filter=0.9) == (3, 1, 8)


def test_kinds_choose_the_loss_of_each_term():
    batch, scales = batch_of_two(), {"image_text": 3 * ONE, "region_text": 3 * ONE}
    mixed = contrastive_terms(batch, scales, tuple(scales), {"region_text": "sigmoid"}, biases={"region_text": -ONE})
    plain = contrastive_terms(batch, scales, tuple(scales))
    assert torch.equal(mixed["image_text"].loss, plain["image_text"].loss)
    assert mixed["region_text"].loss != plain["region_text"].loss
    assert int(mixed["region_text"].num_masked) == int(plain["region_text"].num_masked)


def test_a_sigmoid_loss_by_hand():
    rows, texts = torch.eye(2), torch.eye(2)
    batch = {"image": rows, "image_keys": torch.tensor([1, 2]), "text": texts, "text_keys": torch.tensor([1, 2]),
             "text_mask": torch.ones(2, dtype=torch.bool)}  # fmt: skip
    settings = {"kinds": {"image_text": "sigmoid"}, "biases": {"image_text": -ONE}}
    term = contrastive_terms(batch, {"image_text": 3 * ONE}, ("image_text",), **settings)["image_text"]
    expected = math.log(1 + math.exp(-(3 - 1))) + math.log(1 + math.exp(0 - 1))  # a positive and a negative a row
    assert term.loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"image_text": "siglip"}, "'image_text' has the kind 'siglip'.*infonce, sigmoid"),
        ({"hard_negatives": "sigmoid"}, "'hard_negatives' has the kind 'sigmoid'"),
        (
            {"image_text": "sigmoid"},
            "'image_text' is of kind 'sigmoid' and the model has no bias.*logit_bias_init_value",
        ),
    ],
)
def test_an_impossible_kind_is_refused_by_name(kinds, message):
    with pytest.raises(ValueError, match=message):
        contrastive_terms(batch_of_two(), {"image_text": ONE}, ("image_text",), kinds)


def test_the_choice_compares_a_region_with_its_own_text_and_its_negatives():
    batch, found = batch_of_two(), outputs()
    expected = found.region_embeds[0, 0] @ found.region_text_embeds[[0, 3]].t()
    torch.testing.assert_close(batch["choice_cosines"][0], expected, atol=1e-6, rtol=0)  # float32
    assert batch["choice_mask"].tolist() == [[True, True], [True, False], [True, False], [False, False]]
    assert batch["region_negative_keys"].tolist() == [[FALSE], [-1], [THIRD], [-1]]
    assert batch["image_negative_keys"].tolist() == [[FALSE, -1], [THIRD, -1]]


def test_every_tensor_of_the_batch_says_how_it_is_gathered():
    batch = batch_of_two()
    assert batch.keys() <= GATHERED.keys()
    num_rows = {"image": 2, "text": 2, "region": 4, "region_text": 4}
    assert {key: len(value) for key, value in batch.items()} == {key: num_rows[GATHERED[key].rows] for key in batch}


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """By the rules of `GATHERED`, written down once more."""
    batch = {}
    for key, how in ((key, GATHERED[key]) for key in parts[0]):
        values = [part[key] for part in parts]
        if how.is_widened:
            width = max(value.shape[1] for value in values)
            values = [
                torch.cat([v, v.new_full((len(v), width - v.shape[1], *v.shape[2:]), how.fill)], dim=1) for v in values
            ]
        batch[key] = torch.cat(values)
    return count_texts_once(batch)


def test_images_one_by_one_give_the_terms_of_the_batch():
    """The second image has fewer regions, negatives and texts; two texts are encoded in both parts."""
    whole, found = batch_of_two(), outputs()
    whole |= {"text_fingerprints": torch.tensor([1, 2]), "region_text_fingerprints": torch.tensor([1, 2, 3, 4])}
    shares = [
        (slice(0, 2), [0, 1, 3], {"region_text_index": [[0, 1]], "negative_text_index": [[[2], [-1]]]}),
        (slice(0, 1), [2, 3], {"region_text_index": [[0]], "negative_text_index": [[[0, 1]]]}),
    ]
    parts = []
    for i, (regions, texts, index) in enumerate(shares):
        share = RegionMedClipOutput(
            image_embeds=found.image_embeds[i : i + 1],
            fused_image_embeds=found.fused_image_embeds[i : i + 1],
            text_embeds=found.text_embeds[i : i + 1],
            region_embeds=found.region_embeds[i : i + 1, regions],
            region_text_embeds=found.region_text_embeds[texts],
        )
        part = loss_inputs(
            share,
            torch.ones(1, regions.stop, dtype=torch.bool),
            text_index=torch.tensor([0]),
            text_keys=whole["text_keys"][i : i + 1],
            region_text_keys=whole["region_text_keys"][texts],
            text_facts=whole["text_facts"][i : i + 1],
            region_text_facts=whole["region_text_facts"][texts],
            **{name: torch.tensor(value) for name, value in index.items()},
        )
        part |= {name: whole[name][rows] for name, rows in (("text_fingerprints", [i]),
                                                            ("region_text_fingerprints", texts))}  # fmt: skip
        parts.append(part)
    negatives = torch.tensor([[[3, -1], [-1, -1]], [[2, 3], [-1, -1]]])
    expected = batch_terms(batch_of_two(negative_text_index=negatives), lambda _: 5 * ONE, lambda _: None)
    found = batch_terms(joined(parts), lambda _: 5 * ONE, lambda _: None)
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        for part, value in vars(term).items():
            torch.testing.assert_close(getattr(found[name], part), value, atol=1e-6, rtol=0)  # float32
