"""The loss of a batch: what it takes from the outputs of a process, how that is gathered, and the terms it gives.

Pure functions of embeddings and text keys, with no ranks and no state. Letters: B images, R regions, N hard negatives
of a region, K regions of an image, M region rows, T image texts, U unique region texts, S statements of a text,
F attributes of a statement, D shared width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contrastive_losses import full_precision, hard_negative_loss, info_nce_loss, sigmoid_loss
from .contrastive_pairs import NO_TEXT_KEY, PairRules, at_least_float32, first_occurrence_mask, values_at
from .loss_terms import CONTRASTIVE_TERMS, DISTILLATION_INPUTS, LOSS_KINDS, PROPOSAL_INPUTS, TEXT_TERMS, LossTerm
from .region_losses import proposal_loss, region_distillation_loss

LOSS_TENSORS = (  # tensors of a batch that the loss alone takes, by the names of `loss_inputs`
    "region_text_index",
    "text_index",
    "text_keys",
    "region_text_keys",
    "text_facts",
    "region_text_facts",
    "negative_text_index",
    "image_region_keys",
    "image_region_facts",
)


class Gathering(NamedTuple):
    """How one tensor of the flat batch is joined over micro-batches and processes, along its first axis.

    rows: of what it has one row each: "image", "region", "text" or "region_text". Their number may differ; all tensors
        of the same rows are padded alike. "same": equal everywhere, one is taken.
    fill: the value of rows, and of columns, that pad; a padding row takes part in nothing.
    is_widened: whether the second axis may differ too, and is padded to the largest first.
    """

    rows: str
    fill: int = 0
    is_widened: bool = False


GATHERED = {
    "image": Gathering("image"),
    "fused_image": Gathering("image"),
    "image_keys": Gathering("image", fill=NO_TEXT_KEY),
    "image_facts": Gathering("image", is_widened=True),
    "image_region_keys": Gathering("image", fill=NO_TEXT_KEY, is_widened=True),
    "image_region_facts": Gathering("image", is_widened=True),
    "image_negative_keys": Gathering("image", fill=NO_TEXT_KEY, is_widened=True),
    "text": Gathering("text"),
    "text_keys": Gathering("text", fill=NO_TEXT_KEY),
    "text_mask": Gathering("text"),
    "text_facts": Gathering("text", is_widened=True),
    "text_fingerprints": Gathering("text"),
    "region": Gathering("region"),
    "region_keys": Gathering("region", fill=NO_TEXT_KEY),
    "region_row_mask": Gathering("region"),
    "region_facts": Gathering("region"),
    "region_negative_keys": Gathering("region", fill=NO_TEXT_KEY, is_widened=True),
    "choice_cosines": Gathering("region", is_widened=True),
    "choice_mask": Gathering("region", is_widened=True),
    "region_text": Gathering("region_text"),
    "region_text_keys": Gathering("region_text", fill=NO_TEXT_KEY),
    "region_text_mask": Gathering("region_text"),
    "region_text_facts": Gathering("region_text"),
    "region_text_fingerprints": Gathering("region_text"),
    "proposal_logits": Gathering("image"),
    "proposal_boxes": Gathering("image"),
    "target_boxes": Gathering("image", is_widened=True),
    "target_mask": Gathering("image", is_widened=True),
    "patch_boxes": Gathering("same"),
    "is_complete": Gathering("image"),
    "student": Gathering("image"),
    "teacher": Gathering("image"),
    "distilled_mask": Gathering("image"),
}


OWN_KEYS = {  # keys of texts that rows of the batch name as their own, or as false of them
    "text": ("image_keys",),
    "region_text": ("region_keys", "image_region_keys", "region_negative_keys", "image_negative_keys"),
}


def count_texts_once(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`batch` in which of texts with equal `*_fingerprints` the first alone takes part (`*_mask`); after gathering.

    They read alike, so they mean the same: where they come with several keys, all rows have one of these instead.
    """
    for name, own_keys in OWN_KEYS.items():
        if f"{name}_fingerprints" in batch:
            keys, mask = batch[f"{name}_keys"], batch[f"{name}_mask"]
            fingerprints = batch[f"{name}_fingerprints"]
            present = [f"{name}_keys", *(key for key in own_keys if key in batch)]
            renamed = _one_key_for_each(fingerprints, keys, mask, [batch[key] for key in present])
            batch = batch | dict(zip(present, renamed))
            batch[f"{name}_mask"] = first_occurrence_mask(fingerprints, mask)
    return batch


def _one_key_for_each(fingerprints: Tensor, keys: Tensor, mask: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """The `wanted` keys of any shape, those of texts (M,) with a fingerprint in common replaced by the smallest."""
    known, key_of_row = keys.unique(return_inverse=True)  # (V,), (M,)
    _, text_of_row = fingerprints.unique(return_inverse=True)
    names = known
    for _ in range(2):  # a text with two keys may have a wording in common with each of two others
        of_row = names[key_of_row].masked_fill(~mask, torch.iinfo(keys.dtype).max)
        of_text = torch.full_like(keys, torch.iinfo(keys.dtype).max).scatter_reduce(0, text_of_row, of_row, "amin")
        names = names.scatter_reduce(0, key_of_row, of_text[text_of_row], "amin")
    places = [torch.searchsorted(known, values).clamp_max(len(known) - 1) for values in wanted]
    return [torch.where(known[place] == values, names[place], values) for values, place in zip(wanted, places)]


def loss_inputs(
    output,
    region_mask: Tensor | None,
    region_text_index: Tensor | None = None,
    text_index: Tensor | None = None,
    text_keys: Tensor | None = None,
    region_text_keys: Tensor | None = None,
    text_facts: Tensor | None = None,
    region_text_facts: Tensor | None = None,
    negative_text_index: Tensor | None = None,
    image_region_keys: Tensor | None = None,
    image_region_facts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The flat rows, keys and masks that `contrastive_terms` takes, from the outputs of one process.

    Args:
        output: a `RegionMedClipOutput` with image and text embeddings.
        region_mask, region_text_index, text_index, text_keys, region_text_keys: as `RegionMedClipModel` takes them.
        text_facts: (T, S, F) int64 statements of the texts, 0 = unsaid. None: nothing is known of what they state.
        region_text_facts: (U, F) int64 statement of each region text.
        negative_text_index: (B, R, N) int64 rows of each region's hard negatives among the region texts, -1 = none.
        image_region_keys, image_region_facts: (B, K) int64, (B, K, F) int64 of all regions of each image, those that
            this step left out too. None: of the regions of this step.

    Raises:
        ValueError: without images or texts, without `text_index` where it is needed, for keys of all regions alone.
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
        "image_keys": values_at(text_keys, text_index, NO_TEXT_KEY),
        "text": output.text_embeds,
        "text_keys": text_keys,
        "text_mask": text_keys != NO_TEXT_KEY,
    }
    if text_facts is not None:
        batch |= {"text_facts": text_facts, "image_facts": values_at(text_facts, text_index, 0)}
    if output.region_embeds is None or output.region_text_embeds is None or region_text_index is None:
        return batch
    if region_text_keys is None:
        region_text_keys = torch.arange(output.region_text_embeds.shape[0], device=device)
    index = region_text_index.masked_fill(~region_mask, -1)
    batch |= _region_rows(output, index, region_text_keys, image_region_keys)
    if region_text_facts is not None:
        batch |= _region_facts(index, region_text_facts, image_region_keys, image_region_facts)
    if negative_text_index is not None:
        negative_index = negative_text_index.masked_fill((index < 0)[..., None], -1)
        batch |= _hard_negatives(output, index, negative_index, region_text_keys)
    return batch


def _region_rows(
    output, index: Tensor, region_text_keys: Tensor, image_region_keys: Tensor | None
) -> dict[str, Tensor]:
    """Rows of the regions and of their texts; index (B, R), -1 = no region or no text."""
    keys = values_at(region_text_keys, index, NO_TEXT_KEY)  # (B, R)
    return {
        "fused_image": output.fused_image_embeds,
        "region": output.region_embeds.flatten(0, 1),  # (B * R, D)
        "region_keys": keys.flatten(),
        "image_region_keys": keys if image_region_keys is None else image_region_keys,
        "region_row_mask": (index >= 0).flatten(),
        "region_text": output.region_text_embeds,
        "region_text_keys": region_text_keys,
        "region_text_mask": region_text_keys != NO_TEXT_KEY,
    }


def _region_facts(
    index: Tensor, region_text_facts: Tensor, image_region_keys: Tensor | None, image_region_facts: Tensor | None
) -> dict[str, Tensor]:
    """Facts of the regions and of their texts; a ValueError for keys without facts, or the other way round."""
    if (image_region_keys is None) != (image_region_facts is None):
        raise ValueError("image_region_keys and image_region_facts belong together; give both or neither.")
    facts = values_at(region_text_facts, index, 0)  # (B, R, F)
    return {
        "region_facts": facts.flatten(0, 1),  # (B * R, F)
        "image_region_facts": facts if image_region_facts is None else image_region_facts,
        "region_text_facts": region_text_facts,
    }


def _hard_negatives(output, index: Tensor, negative_index: Tensor, region_text_keys: Tensor) -> dict[str, Tensor]:
    """Keys of the negatives of regions and images, and what the choice of each region's own text among them takes."""
    keys = values_at(region_text_keys, negative_index, NO_TEXT_KEY)  # (B, R, N)
    own_keys = values_at(region_text_keys, index, NO_TEXT_KEY)[..., None]  # (B, R, 1)
    is_negative = (keys != NO_TEXT_KEY) & (keys != own_keys)
    choices = torch.cat([index[..., None], negative_index], dim=-1).clamp_min(0)  # (B, R, 1 + N)
    with full_precision(output.region_embeds):
        texts = at_least_float32(output.region_text_embeds)[choices]  # (B, R, 1 + N, D)
        cosines = texts @ at_least_float32(output.region_embeds)[..., None]
    return {
        "region_negative_keys": keys.flatten(0, 1),  # (B * R, N)
        "image_negative_keys": keys.flatten(1),  # (B, R * N)
        "choice_cosines": cosines.squeeze(-1).flatten(0, 1),  # (B * R, 1 + N)
        "choice_mask": torch.cat([index[..., None] >= 0, is_negative], dim=-1).flatten(0, 1),  # (B * R, 1 + N)
    }


def batch_terms(
    batch: dict[str, Tensor],
    logit_scale: Callable[[str], Tensor],
    bias: Callable[[str], Tensor | None],
    names: tuple[str, ...] | None = None,
    kinds: dict[str, str] | None = None,
    similarity_filter: float | None = None,
) -> dict[str, LossTerm]:
    """The named loss terms of one (gathered or local) batch.

    Args:
        batch: see `GATHERED` for its keys, `loss_inputs` for where they come from.
        logit_scale, bias: of a term; see `contrastive_terms`.
        names: terms wanted; None takes every term that the batch has the tensors for.
        kinds, similarity_filter: see `contrastive_terms`.
    """
    if names is None:
        names = CONTRASTIVE_TERMS if "region" in batch else ("image_text",)
        names += ("hard_negatives",) if "choice_cosines" in batch else ()
        names += ("proposals",) if "proposal_logits" in batch else ()
        names += ("region_distillation",) if "student" in batch else ()
    text_names = tuple(name for name in names if name in TEXT_TERMS)
    scales = {name: logit_scale(name) for name in text_names}
    biases = {name: bias(name) for name in text_names}
    terms = contrastive_terms(batch, scales, text_names, kinds, similarity_filter, biases)
    if "proposals" in names:
        terms["proposals"] = proposal_loss(*(batch[key] for key in PROPOSAL_INPUTS))
    if "region_distillation" in names:
        terms["region_distillation"] = region_distillation_loss(*(batch[key] for key in DISTILLATION_INPUTS))
    return terms


def contrastive_terms(
    embeddings: dict[str, Tensor],
    logit_scales: dict[str, Tensor],
    names: tuple[str, ...],
    kinds: dict[str, str] | None = None,
    similarity_filter: float | None = None,
    biases: dict[str, Tensor | None] | None = None,
) -> dict[str, LossTerm]:
    """The named terms that compare with texts, of one (gathered or local) batch.

    Args:
        embeddings: unit-length rows with keys and masks:
            `image` (B, D), `image_keys` (B,), `text` (T, D), `text_keys` (T,), `text_mask` (T,) bool; for `region_text`
            also `region` (M, D), `region_keys` (M,), `region_row_mask` (M,) bool, `region_text` (U, D),
            `region_text_keys` (U,), `region_text_mask` (U,) bool; for `image_region_text` the latter three and
            `image_region_keys` (B, K), -1 = none; for `fused_image_text` also `fused_image` (B, D); for
            `hard_negatives` `choice_cosines` (M, 1 + N) and `choice_mask` (M, 1 + N) bool.
            An image without any text of its own, whose keys are all -1, takes no part: nothing is known of it.
            Optional, for pairs that are neither positive nor negative (`PairRules`): `image_facts` and `text_facts`
            (B or T, S, F), `region_facts` and `region_text_facts` (M or U, F), `image_region_facts` (B, K, F),
            `region_negative_keys` (M, N), `image_negative_keys` (B, R * N), all int64.
        logit_scales: inverse temperature of each term, (1,).
        names: terms wanted, of `image_text`, `region_text`, `image_region_text` (the texts of an image's regions as
            positives of its global embedding, no box given), `fused_image_text` and `hard_negatives` (which of its own
            text and its hard negatives belongs to a region).
        kinds: "infonce" or "sigmoid" of each term that compares rows with candidates; "infonce" where none is given.
        similarity_filter: cosine of two texts above which one is no negative of the other's row. None: no filter.
        biases: (1,) of each term of kind "sigmoid".

    Raises:
        ValueError: for an unknown kind, and for a sigmoid term without a bias.
    """
    kinds = kinds or {}
    _check_kinds(kinds, names, biases or {})
    terms = {}
    for name in names:
        if name == "hard_negatives":
            choices = embeddings["choice_cosines"], embeddings["choice_mask"]
            terms[name] = hard_negative_loss(*choices, logit_scales[name])
            continue
        rows, candidates, rules = _pairs(name, embeddings, similarity_filter)
        if kinds.get(name, "infonce") == "sigmoid":
            terms[name] = sigmoid_loss(rows, candidates, rules, logit_scales[name], biases[name])
        else:
            terms[name] = info_nce_loss(rows, candidates, rules, logit_scales[name])
    return terms


def _check_kinds(kinds: dict[str, str], names: tuple[str, ...], biases: dict[str, Tensor | None]) -> None:
    for name, kind in kinds.items():
        if name not in CONTRASTIVE_TERMS or kind not in LOSS_KINDS:
            raise ValueError(
                f"the loss term {name!r} has the kind {kind!r}; {', '.join(CONTRASTIVE_TERMS)} may have one of "
                f"{', '.join(LOSS_KINDS)}, other terms have none."
            )
        if kind == "sigmoid" and name in names and biases.get(name) is None:
            raise ValueError(
                f"the loss term {name!r} is of kind 'sigmoid' and the model has no bias for it; build the model with "
                "logit_bias_init_value (SigLIP's is -10), or take 'infonce'."
            )


def _pairs(name: str, batch: dict[str, Tensor], similarity_filter: float | None) -> tuple[Tensor, Tensor, PairRules]:
    """Rows, candidate texts and rules of a contrastive term."""
    own = {"region_text": _region_rules, "image_region_text": _image_region_rules}.get(name, _image_rules)(batch)
    texts = "region_text" if name in ("region_text", "image_region_text") else "text"
    rows = {"region_text": "region", "fused_image_text": "fused_image"}.get(name, "image")
    rules = PairRules(
        candidate_keys=batch[f"{texts}_keys"],
        candidate_mask=batch[f"{texts}_mask"],
        least_similarity=similarity_filter,
        candidate_embeds=None if similarity_filter is None else batch[texts],
        **own,
    )
    return batch[rows], batch[texts], rules


def _image_rules(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of images among image texts."""
    keys = batch["image_keys"]  # (B,)
    rules = {"row_keys": keys[:, None], "row_mask": keys != NO_TEXT_KEY}
    if "text_facts" in batch:
        rules |= {"row_facts": batch["image_facts"][:, None], "candidate_facts": batch["text_facts"]}
    return rules


def _region_rules(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of regions among region texts."""
    keys, mask = batch["region_keys"], batch["region_row_mask"]  # (M,)
    rules = {"row_keys": keys[:, None], "row_mask": mask}
    if "region_text_facts" in batch:
        rules |= {"row_facts": batch["region_facts"][:, None, None], "candidate_facts": _as_texts(batch)}
    if "region_negative_keys" in batch:
        own_keys = keys.masked_fill(~mask, NO_TEXT_KEY)
        rules |= {
            "row_negative_keys": batch["region_negative_keys"],
            "candidate_is_stated": _is_stated(own_keys, batch),
        }
    return rules


def _image_region_rules(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of images among region texts. Whatever an image's regions and its caption state is an own text by itself."""
    keys = batch["image_region_keys"]  # (B, K)
    rules = {"row_keys": keys, "row_mask": (batch["image_keys"] != NO_TEXT_KEY) | (keys != NO_TEXT_KEY).any(dim=1)}
    if "region_text_facts" in batch:
        facts = [batch[key] for key in ("image_region_facts", "image_facts") if key in batch]
        rules |= {"row_facts": torch.cat(facts, dim=1)[:, :, None], "candidate_facts": _as_texts(batch)}
    if "image_negative_keys" in batch:
        rules |= {"row_negative_keys": batch["image_negative_keys"], "candidate_is_stated": _is_stated(keys, batch)}
    return rules


def _as_texts(batch: dict[str, Tensor]) -> Tensor:
    """(U, 1, F) the region texts' facts, one statement each; of one without them those known for its key elsewhere.

    A hard negative comes without: another part of the batch may know it as a text of its own, or an image as that of a
    region which this step left out.
    """
    own, others = batch["region_text_keys"], batch["image_region_keys"]
    _, key_of_row = torch.cat([own, others.flatten()]).unique(return_inverse=True)
    facts = torch.cat([batch["region_text_facts"], batch["image_region_facts"].flatten(0, 1)])  # (U + B * K, F)
    num_rows = len(facts)
    rows = torch.arange(num_rows, device=facts.device).masked_fill(~facts.any(dim=1), num_rows)
    knowing = rows.new_full((num_rows,), num_rows).scatter_reduce(0, key_of_row, rows, "amin")[key_of_row[: len(own)]]
    return torch.cat([facts, torch.zeros_like(facts[:1])])[knowing][:, None]  # zeros where no row of the key is known


def _is_stated(own_keys: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(U,) bool: the region text is the own text of some row of the batch."""
    return torch.isin(batch["region_text_keys"], own_keys)
