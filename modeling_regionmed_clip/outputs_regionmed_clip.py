"""What RegionMedClipModel gives back; letters as at the head of modeling_regionmed_clip.py."""

from dataclasses import dataclass, fields

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class RegionMedClipOutput(ModelOutput):
    """What one forward pass gives; embeddings are unit length, rows of padding regions exactly zero.

    Args:
        loss: () float; the sum of `loss_terms`, with `return_loss=True`.
        loss_terms: name -> () float; `image_text`, with regions and their texts the others of `CONTRASTIVE_TERMS`, with
            their hard negatives `hard_negatives`, with regions `proposals`.
        logits_per_image, logits_per_text: (B, T), (T, B) float; scaled cosine of the plain global embedding and texts.
        logits_per_region: (B, R, U) float; against the region texts, or (B, R, T) where none were given.
        logits_per_fused_image: (B, T) float; with the fused embedding.
        image_embeds, fused_image_embeds: (B, D) float.
        text_embeds, region_text_embeds: (T, D), (U, D) float.
        region_embeds: (B, R, D) float.
        proposal_logits, proposal_boxes: (B, P), (B, P, 4) float32; score and box of every patch, see `ProposalHead`.
        vision_model_output, text_model_output: what the towers gave; `pooler_output` is the projected embedding, as
            `get_image_features` without regions and `get_text_features` give it.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_region: Tensor | None = None
    logits_per_fused_image: Tensor | None = None
    image_embeds: Tensor | None = None
    fused_image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    region_embeds: Tensor | None = None
    region_text_embeds: Tensor | None = None
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None
    vision_model_output: ModelOutput | None = None
    text_model_output: ModelOutput | None = None

    def in_field_order(self) -> "RegionMedClipOutput":
        """The same, entries in the order above; a ModelOutput keeps the order in which they were filled."""
        return RegionMedClipOutput(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass
class PhraseGrounding(ModelOutput):
    """Where phrases are seen: cosines, of the patches and of proposed regions.

    Args:
        heat: (B, T, h, w) float; cosine of every patch's embedding and every phrase.
        region_boxes, region_mask, region_scores: (B, K, 4), (B, K), (B, K); the proposals, see `RegionProposals`.
        phrase_similarity: (B, K, T) float; cosine of every proposal's embedding and every phrase.
    """

    heat: Tensor | None = None
    region_boxes: Tensor | None = None
    region_mask: Tensor | None = None
    region_scores: Tensor | None = None
    phrase_similarity: Tensor | None = None


@dataclass
class RegionMedClipQuestionAnsweringOutput(ModelOutput):
    """What RegionMedClipForVisualQuestionAnswering gives for Q questions and A answers.

    Args:
        loss: () float; with `labels`.
        logits: (Q, A) float; an answer's score is their sigmoid.
        region_attention: (Q, R) float32; the share of each real region of the question in what the regions change: how
            far the probabilities of the answers move when it is left out. It sums to 1, or is 0 where the question has
            no region. None: no regions were given or proposed.
        patch_attention: (Q, h, w) float32; the weight of each patch in the last look at the image; it sums to 1. None:
            no image.
        region_boxes, region_mask: (Q, R, 4) float32, (Q, R) bool; the regions that were used.
        vision_model_output, text_model_output: what the towers gave for B images and Q questions; `pooler_output` is
            the projected embedding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    region_attention: Tensor | None = None
    patch_attention: Tensor | None = None
    region_boxes: Tensor | None = None
    region_mask: Tensor | None = None
    vision_model_output: ModelOutput | None = None
    text_model_output: ModelOutput | None = None


def with_pooler_output(outputs: ModelOutput, pooler_output: Tensor) -> BaseModelOutputWithPooling:
    """What a tower gave, with another pooled output in its place; hidden states and attentions where it gave them."""
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooler_output,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )
