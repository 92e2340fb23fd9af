"""The names of the loss terms, and what a term gives beside its loss: the numbers of pairs behind it."""

from dataclasses import dataclass

from torch import Tensor

CONTRASTIVE_TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")  # rows against candidates
TEXT_TERMS = (*CONTRASTIVE_TERMS, "hard_negatives")  # those with a temperature
LOSS_KINDS = ("infonce", "sigmoid")
PROPOSAL_INPUTS = ("proposal_logits", "proposal_boxes", "target_boxes", "target_mask", "patch_boxes", "is_complete")
DISTILLATION_INPUTS = ("student", "teacher", "distilled_mask")


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss with the numbers of pairs (patches, regions) behind it; tensors of shape ().

    Masked pairs are those of rows and candidates that take part, which are neither positive nor negative.
    """

    loss: Tensor
    num_positives: Tensor
    num_negatives: Tensor
    num_masked: Tensor
