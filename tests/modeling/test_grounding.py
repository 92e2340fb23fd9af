"""Phrases, proposals and dense features go through one region path: what `ground_phrases` says, the parts say too."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = {"atol": 1e-5, "rtol": 0}  # float32


def unit(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=dim)


def proposing_model(threshold: float = 0.0, **changes):
    """A tiny model whose untrained scores, all near 0.01, reach the threshold; fused regions change the image."""
    model = tiny_model(proposal_threshold=threshold, **changes)
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    return model


def phrases(num_texts: int = 5) -> dict[str, torch.Tensor]:
    """Phrases of 4 to 7 tokens."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(num_texts, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(5, 50, (num_texts, 7), generator=generator), "attention_mask": mask}


@pytest.mark.parametrize("roi_mode", ["prompter", "roialign", "maskpool"])
def test_every_image_is_compared_with_every_phrase_by_the_public_features(roi_mode):
    model, pixels = proposing_model(roi_mode=roi_mode), tiny_batch()["pixel_values"]
    found = model.ground_phrases(pixels, **phrases(), top_k=6)
    texts = unit(model.get_text_features(**phrases()).pooler_output)  # (T, D)
    dense = unit(model.get_dense_features(pixels), dim=1)  # (B, D, h, w)
    torch.testing.assert_close(found.heat, torch.einsum("bdhw,td->bthw", dense, texts), **TOLERANCE)
    proposed = model.propose_regions(pixels, top_k=6)
    assert torch.equal(found.region_boxes, proposed.region_boxes)
    assert torch.equal(found.region_mask, proposed.region_mask)
    assert torch.equal(found.region_scores, proposed.scores)
    regions = model.get_region_features(pixels, proposed.region_boxes, proposed.region_mask).pooler_output
    torch.testing.assert_close(found.phrase_similarity, unit(regions) @ texts.t(), **TOLERANCE)
    assert (found.heat.shape, found.phrase_similarity.shape) == ((3, 5, 4, 4), (3, 6, 5))


def test_similarities_are_cosines_and_exactly_zero_where_the_model_abstained():
    model, pixels = proposing_model(), tiny_batch()["pixel_values"]
    scores = model.propose_regions(pixels, top_k=8).scores
    between = scores.flatten().sort().values[[10, 11]].mean().item()  # some proposals pass, some do not
    found = model.ground_phrases(pixels, **phrases(), top_k=8, threshold=between)
    assert found.region_mask.any()
    assert not found.region_mask.all()
    assert torch.equal(found.phrase_similarity[~found.region_mask], torch.zeros((~found.region_mask).sum(), 5))
    assert torch.equal(found.region_scores[~found.region_mask], torch.zeros((~found.region_mask).sum()))
    assert (found.phrase_similarity[found.region_mask].abs() > 0).all()
    for cosines in (found.heat, found.phrase_similarity):
        assert (cosines.abs() <= 1 + 1e-6).all()


def test_grounding_a_batch_equals_grounding_its_images_and_phrases_one_by_one():
    model, pixels = proposing_model(), tiny_batch()["pixel_values"]
    whole = model.ground_phrases(pixels, **phrases(), top_k=4)
    for i in range(3):
        for j in range(5):
            text = {name: tensor[j : j + 1] for name, tensor in phrases().items()}
            single = model.ground_phrases(pixels[i : i + 1], **text, top_k=4)
            torch.testing.assert_close(single.heat[0, 0], whole.heat[i, j], **TOLERANCE)
            torch.testing.assert_close(single.phrase_similarity[0, :, 0], whole.phrase_similarity[i, :, j], **TOLERANCE)


def test_phrases_without_padding_need_no_attention_mask():
    model, pixels, ids = proposing_model(), tiny_batch()["pixel_values"], phrases()["input_ids"]
    given = model.ground_phrases(pixels, ids, torch.ones_like(ids))
    torch.testing.assert_close(model.ground_phrases(pixels, ids).heat, given.heat, **TOLERANCE)


def test_autocast_stays_near_float32():
    model, pixels = proposing_model(), tiny_batch()["pixel_values"]
    exact = model.ground_phrases(pixels, **phrases())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.ground_phrases(pixels, **phrases())
    torch.testing.assert_close(rough.heat.float(), exact.heat, atol=3e-2, rtol=0)
    assert rough.region_boxes.dtype == torch.float32


# ---- the image with its proposed regions


def test_fusing_proposed_regions_equals_giving_them_as_boxes():
    model, pixels = proposing_model(), tiny_batch()["pixel_values"]
    found = model.propose_regions(pixels)
    by_boxes = model.get_image_features(pixels, found.region_boxes, found.region_mask).pooler_output
    proposed = model.get_image_features(pixels, regions="proposed").pooler_output
    torch.testing.assert_close(proposed, by_boxes, **TOLERANCE)
    plain = unit(model.get_image_features(pixels).pooler_output)
    assert ((unit(proposed) - plain).abs().amax(dim=1) > 1e-3).all()


def test_where_the_model_abstains_everywhere_the_image_keeps_its_plain_embedding():
    model, pixels = proposing_model(threshold=1.0), tiny_batch()["pixel_values"]
    assert not model.propose_regions(pixels).region_mask.any()
    proposed = model.get_image_features(pixels, regions="proposed").pooler_output
    plain = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(proposed, unit(plain), **TOLERANCE)  # of unit length before it is fused
    found = model.ground_phrases(pixels, **phrases())
    assert torch.equal(found.phrase_similarity, torch.zeros(3, 16, 5))
    assert found.heat.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"regions": "proposed", "region_boxes": torch.zeros(3, 1, 4)}, "'proposed' and region_boxes; .*not both"),
        ({"regions": "proposed", "region_coverage": torch.ones(3, 16, 4, 4)}, "region_coverage came without"),
        ({"regions": "all"}, "regions='all'; regions is 'proposed' or left out"),
    ],
)
def test_proposed_regions_beside_boxes_and_unknown_regions_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        tiny_model().get_image_features(tiny_batch()["pixel_values"], **arguments)


# ---- what runs on the device stays there


class HostReads(TorchDispatchMode):
    """Counts the operations that wait for the device: values read by Python, and shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in self.WAITING
        return function(*args, **(kwargs or {}))


def test_grounding_reads_nothing_back_to_the_host_beyond_what_the_towers_do():
    model, pixels, texts = proposing_model(), tiny_batch()["pixel_values"], phrases()
    with torch.no_grad(), HostReads() as in_towers:
        model.text_model(**texts)
        model.vision_model(pixel_values=pixels)
    with torch.no_grad(), HostReads() as in_grounding:
        model.ground_phrases(pixels, **texts)
    assert in_grounding.count == in_towers.count
    with torch.no_grad(), HostReads() as in_image:
        model.get_image_features(pixels, regions="proposed")
    assert in_image.count == 0
    with HostReads() as reads:
        bool(pixels.any())
    assert reads.count == 1  # the counter counts
