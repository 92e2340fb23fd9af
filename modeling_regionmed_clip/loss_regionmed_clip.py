"""Contrastive losses of RegionMed-CLIP: pure functions of embeddings and text keys, with no ranks and no state.

A text's key stands for everything the text states, so rows and columns with equal keys are positives of each other.
Letters: N queries, M candidates, B images, R regions, T image texts, U unique region texts, D shared width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PROPOSAL_INPUTS = ("proposal_logits", "proposal_boxes", "target_boxes", "target_mask", "patch_boxes", "is_complete")
DISTILLATION_INPUTS = ("student", "teacher", "distilled_mask")
ROUNDING_MARGIN = 1.001  # a region whose middle lies between two patches is near both, not near none by rounding
NO_TEXT_KEY = -1  # keys of real texts are 63-bit hashes, hence never negative


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss with the numbers of pairs (patches, regions) behind it; tensors of shape ()."""

    loss: Tensor
    num_positives: Tensor
    num_negatives: Tensor


def multi_positive_info_nce(
    queries: Tensor,
    candidates: Tensor,
    query_keys: Tensor,
    candidate_keys: Tensor,
    logit_scale: Tensor,
    query_mask: Tensor | None = None,
    candidate_mask: Tensor | None = None,
) -> LossTerm:
    """Symmetric InfoNCE in which every pair with equal keys is a positive, averaged over both directions.

    A query's loss is the mean over its positives of -log softmax over all candidates; queries without a positive are
    left out. With distinct keys on both sides it is CLIP's loss.

    Args:
        queries, candidates: (N, D), (M, D) float; unit length.
        query_keys, candidate_keys: (N,), (M,) int64.
        logit_scale: () or (1,) float; inverse temperature.
        query_mask, candidate_mask: (N,), (M,) bool; False rows and columns take no part. None: all take part.

    Returns:
        The term; its loss is exactly zero, with a gradient, when no pair is positive.

    Source: InfoNCE as in CLIP, arXiv:2103.00020; several positives as L_out of arXiv:2004.11362, eq. 2.
    """
    positive = query_keys[:, None] == candidate_keys[None, :]  # (N, M)
    return info_nce(queries, candidates, positive, logit_scale, query_mask, candidate_mask)


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    positive: Tensor,
    logit_scale: Tensor,
    query_mask: Tensor | None = None,
    candidate_mask: Tensor | None = None,
) -> LossTerm:
    """`multi_positive_info_nce` with the positives given as a (N, M) bool matrix."""
    logits = (logit_scale * (queries @ candidates.t())).float()  # (N, M)
    taken = torch.ones_like(positive)
    if query_mask is not None:
        taken = taken & query_mask[:, None]
    if candidate_mask is not None:
        taken = taken & candidate_mask[None, :]
    positive = positive & taken
    forward = _mean_over_positives(logits, positive, taken)
    backward = _mean_over_positives(logits.t(), positive.t(), taken.t())
    return LossTerm(
        loss=(forward + backward) / 2, num_positives=positive.sum(), num_negatives=(taken & ~positive).sum()
    )


def _mean_over_positives(logits: Tensor, positive: Tensor, taken: Tensor) -> Tensor:
    """() mean over the rows with a positive of the mean -log softmax of their positives, among `taken` columns."""
    lowest = torch.finfo(logits.dtype).min
    log_softmax = logits.masked_fill(~taken, lowest).log_softmax(dim=1)
    num_positives = positive.sum(dim=1)
    row_losses = -log_softmax.masked_fill(~positive, 0.0).sum(dim=1) / num_positives.clamp_min(1)
    return row_losses.sum() / (num_positives > 0).sum().clamp_min(1)


def first_occurrence_mask(fingerprints: Tensor, mask: Tensor | None = None) -> Tensor:
    """(M,) bool, True where no earlier (unmasked) row has the same fingerprint: each distinct text counts once.

    Args:
        fingerprints: (M,) int64; equal for equal texts.
        mask: (M,) bool; False rows are never first and never hide a later row.
    """
    if mask is None:
        mask = torch.ones_like(fingerprints, dtype=torch.bool)
    same = (fingerprints[:, None] == fingerprints[None, :]) & mask[None, :]
    is_earlier = torch.ones_like(same).tril(diagonal=-1)
    return mask & ~(same & is_earlier).any(dim=1)


def keys_at(text_keys: Tensor, text_index: Tensor) -> Tensor:
    """(B,) or (B, R) int64 text key of every image or region, `NO_TEXT_KEY` where it has no text.

    Args:
        text_keys: (T,) or (U,) int64.
        text_index: (B,) or (B, R) int64; rows of the texts, -1 = none.
    """
    return text_keys[text_index.clamp_min(0)].masked_fill(text_index < 0, NO_TEXT_KEY)


def contrastive_terms(
    embeddings: dict[str, Tensor], logit_scales: dict[str, Tensor], names: tuple[str, ...]
) -> dict[str, LossTerm]:
    """The named contrastive terms of one (gathered or local) batch.

    Args:
        embeddings: unit-length rows with keys and masks:
            `image` (B, D), `image_keys` (B,), `text` (T, D), `text_keys` (T,), `text_mask` (T,) bool; for `region_text`
            also `region` (M, D), `region_keys` (M,), `region_row_mask` (M,) bool, `region_text` (U, D),
            `region_text_keys` (U,), `region_text_mask` (U,) bool; for `image_region_text` the latter three and
            `image_region_keys` (B, R), -1 = none; for `fused_image_text` also `fused_image` (B, D).
            An image without any text of its own, whose keys are all -1, takes no part: nothing is known of it.
        logit_scales: inverse temperature of each term, (1,).
        names: terms wanted, of `image_text`, `region_text`, `image_region_text` (the texts of an image's regions as
            positives of its global embedding, no box given) and `fused_image_text`.
    """
    terms = {}
    for name in names:
        has_text = embeddings["image_keys"] != NO_TEXT_KEY  # (B,)
        if name == "image_region_text":
            has_text = has_text | (embeddings["image_region_keys"] != NO_TEXT_KEY).any(dim=1)
            positive = embeddings["image_region_keys"][..., None] == embeddings["region_text_keys"]  # (B, R, U)
            terms[name] = info_nce(
                embeddings["image"],
                embeddings["region_text"],
                positive.any(dim=1),
                logit_scales[name],
                query_mask=has_text,
                candidate_mask=embeddings["region_text_mask"],
            )
            continue
        if name == "region_text":
            rows, row_keys, row_mask = embeddings["region"], embeddings["region_keys"], embeddings["region_row_mask"]
            columns = ("region_text", "region_text_keys", "region_text_mask")
        else:
            rows = embeddings["image" if name == "image_text" else "fused_image"]
            row_keys, row_mask = embeddings["image_keys"], has_text
            columns = ("text", "text_keys", "text_mask")
        candidates, candidate_keys, candidate_mask = (embeddings[column] for column in columns)
        terms[name] = multi_positive_info_nce(
            rows, candidates, row_keys, candidate_keys, logit_scales[name], row_mask, candidate_mask
        )
    return terms


def proposal_loss(
    logits: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    target_mask: Tensor,
    patch_boxes: Tensor,
    is_complete: Tensor | None = None,
) -> LossTerm:
    """Focal loss of the scores, L1 and GIoU loss of the boxes, of one proposal for every patch.

    A patch whose centre lies near the middle of a target (within a quarter of its sides, or half a patch) stands for
    it, of several targets for the smallest. The score it shall give is the overlap (IoU) of its own box with the
    target, so that well-placed boxes win the suppression; all other patches shall give 0.

    Args:
        logits: (B, P) float.
        boxes: (B, P, 4) float; fractions of the frame.
        target_boxes, target_mask: (B, R, 4) float, (B, R) bool; annotated regions, False = padding. Unannotated
            regions count as background. What lies outside the frame is cut off; an inverted box is no target.
        patch_boxes: (P, 4) float; fractions of the frame.
        is_complete: (B,) bool; False for an image of which only some annotated regions are targets, whose other patches
            then teach nothing. None: all are complete.

    Returns:
        The term, normalised by the number of patches that stand for a target (at least 1).

    Source: dense assignment as FCOS, arXiv:1904.01355; quality focal loss, arXiv:2006.04388, eq. 6; GIoU,
    arXiv:1902.09630; weights 5 and 2 of DETR, arXiv:2005.12872.
    """
    logits, boxes = logits.float(), boxes.float()
    target_boxes = target_boxes.float().masked_fill(~target_mask[..., None], 0.0).clamp(0.0, 1.0)
    patch_centres = (patch_boxes[:, :2] + patch_boxes[:, 2:]) / 2  # (P, 2)
    patch_side = patch_boxes[0, 2:] - patch_boxes[0, :2]
    middle = (target_boxes[..., :2] + target_boxes[..., 2:]) / 2  # (B, R, 2)
    extent = target_boxes[..., 2:] - target_boxes[..., :2]
    radius = torch.maximum(extent / 4, patch_side / 2) * ROUNDING_MARGIN
    offset = (patch_centres[None, :, None] - middle[:, None]).abs()  # (B, P, R, 2)
    is_target = target_mask & (extent >= 0).all(dim=-1)  # (B, R)
    stands_for = (offset <= radius[:, None]).all(dim=-1) & is_target[:, None]  # (B, P, R)
    areas = extent.prod(dim=-1)[:, None].expand_as(stands_for).masked_fill(~stands_for, torch.inf)
    chosen = areas.argmin(dim=-1)  # (B, P)
    is_positive = stands_for.any(dim=-1)
    targets = target_boxes.gather(1, chosen[..., None].expand(-1, -1, 4))  # (B, P, 4)
    iou, giou = _overlaps(boxes, targets)
    quality = torch.where(is_positive, iou.detach(), 0.0)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = (logits.sigmoid() - quality).abs().square() * entropy
    misfit = 5.0 * (boxes - targets).abs().mean(dim=-1) + 2.0 * (1.0 - giou)
    is_counted = torch.ones_like(is_positive) if is_complete is None else is_positive | is_complete[:, None]
    num_positives = is_positive.sum()
    total = torch.where(is_counted, focal, 0.0).sum() + torch.where(is_positive, misfit, 0.0).sum()
    return LossTerm(total / num_positives.clamp_min(1), num_positives, is_counted.sum() - num_positives)


def _overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and its generalised form in [-1, 1], of boxes (..., 4) pair by pair."""
    low, high = (first[..., :2], second[..., :2]), (first[..., 2:], second[..., 2:])
    overlap = (torch.minimum(*high) - torch.maximum(*low)).clamp_min(0.0).prod(dim=-1)
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(dim=-1)
    union = sum((boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (first, second)) - overlap
    iou = overlap / union.clamp_min(1e-9)
    return iou, iou - (hull - union) / hull.clamp_min(1e-9)


def region_distillation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
    """1 - cosine of each region's embedding and the teacher's embedding of the region's crop, averaged over regions.

    Args:
        student: (..., D) float; region embeddings, of any length.
        teacher: (..., D) float; embeddings of the crops; no gradient flows into them.
        mask: (...) bool; False regions take no part.

    Returns:
        The term, `num_positives` the regions behind it; its loss is exactly zero, with a gradient, when there is none.

    Source: CLIPSelf, arXiv:2310.01403, whose loss it is.
    """
    cosine = torch.nn.functional.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    num_regions = mask.sum()
    total = torch.where(mask, 1.0 - cosine, 0.0).sum()
    return LossTerm(total / num_regions.clamp_min(1), num_regions, torch.zeros_like(num_regions))


def loss_inputs(
    output,
    region_mask: Tensor | None,
    region_text_index: Tensor | None,
    text_index: Tensor | None,
    text_keys: Tensor | None,
    region_text_keys: Tensor | None,
) -> dict[str, Tensor]:
    """The flat rows, keys and masks that `contrastive_terms` takes, from the outputs of one process.

    Args:
        output: a `RegionMedClipOutput` with image and text embeddings.
        region_mask, region_text_index, text_index, text_keys, region_text_keys: as `RegionMedClipModel` takes them.

    Raises:
        ValueError: without images or texts, or if it is unknown which text belongs to which image.
    """
    if output.image_embeds is None or output.text_embeds is None:
        raise ValueError("return_loss=True needs pixel_values and input_ids; one of them was not given.")
    num_images, num_texts = output.image_embeds.shape[0], output.text_embeds.shape[0]
    device = output.image_embeds.device
    if text_index is None:
        if num_images != num_texts:
            raise ValueError(
                f"return_loss=True got {num_images} images and {num_texts} texts; give text_index (B,) to say which "
                "text belongs to which image, or one text per image."
            )
        text_index = torch.arange(num_images, device=device)
    text_keys = torch.arange(num_texts, device=device) if text_keys is None else text_keys
    batch = {
        "image": output.image_embeds,
        "image_keys": keys_at(text_keys, text_index),
        "text": output.text_embeds,
        "text_keys": text_keys,
        "text_mask": text_keys != NO_TEXT_KEY,
    }
    if output.region_embeds is None or output.region_text_embeds is None or region_text_index is None:
        return batch
    num_region_texts = output.region_text_embeds.shape[0]
    if region_text_keys is None:
        region_text_keys = torch.arange(num_region_texts, device=device)
    has_text = region_mask & (region_text_index >= 0)
    keys = keys_at(region_text_keys, region_text_index)  # (B, R)
    return batch | {
        "fused_image": output.fused_image_embeds,
        "region": output.region_embeds.flatten(0, 1),  # (B * R, D)
        "region_keys": keys.flatten(),
        "image_region_keys": keys.masked_fill(~region_mask, NO_TEXT_KEY),  # (B, R)
        "region_row_mask": has_text.flatten(),
        "region_text": output.region_text_embeds,
        "region_text_keys": region_text_keys,
        "region_text_mask": region_text_keys != NO_TEXT_KEY,
    }
