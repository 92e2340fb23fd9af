"""RegionMed-CLIP: a medical image-text dual encoder whose ROI processor embeds regions and fuses them with the image.

Letters, the same in every comment: B images, R regions, T image-level texts, U unique region texts, L tokens,
P = h x w patches in row-major order, C width of the vision tower, D width of the shared space.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .answer_head import AnswerHead
from .clip_checkpoints import CheckpointStarts
from .configuration_regionmed_clip import RegionMedClipConfig
from .loss_regionmed_clip import LOSS_TENSORS, PROPOSAL_INPUTS, LossTerm, batch_terms, loss_inputs
from .outputs_regionmed_clip import (
    PhraseGrounding,
    RegionMedClipOutput,
    RegionMedClipQuestionAnsweringOutput,
    with_pooler_output,
)
from .pretrained_regionmed_clip import RegionMedClipPreTrainedModel
from .question_answering import AnswerRanking, QuestionAnswering
from .region_pooling import patch_boxes, refuse_regions_without_boxes, settle_regions
from .region_proposals import ProposalHead, RegionProposals, select_proposals
from .roi_processor import RegionFusion, RoiProcessor
from .shared_space import Temperatures, add_logits, build_projection, unit, unit_length
from .towers import build_tower, grid_of, pool_text, read_patches, run_text_tower, run_vision_tower

PROPOSALS_PER_IMAGE = 16


class RegionMedClipModel(CheckpointStarts, AnswerRanking, RegionMedClipPreTrainedModel):
    """Dual encoder with a region path; see `RegionMedClipConfig` for its parts and DESIGN for the tensor contract.

    With no region given the global embedding is the plain encoder's: the ROI processor is not even run (in training
    with a loss it is, on nothing and with no effect, so that every parameter has a gradient).
    """

    main_input_name = "input_ids"  # the first argument of `forward`, as tools of the library expect
    _keys_to_ignore_on_load_unexpected = [r"^answer_head\."]  # of a folder that answers questions

    def __init__(self, config: RegionMedClipConfig):
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config, config.image_pooling)
        self.text_model = build_tower(config.text_config, config.text_pooling)
        width, text_width = config.pooled_image_width, config.pooled_text_width
        self.visual_projection = build_projection(config.visual_projection_type, width, config.projection_dim)
        self.text_projection = build_projection(config.text_projection_type, text_width, config.projection_dim)
        self.roi_processor = RoiProcessor(config)
        self.region_fusion = RegionFusion(config)
        self.temperatures = Temperatures(config)
        self.proposal_head = ProposalHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the text tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings of the text tower; `resize_token_embeddings` does it by this."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Text tower output whose `pooler_output` (T, D) is the projected text embedding, not normalised.

        Args:
            input_ids: (T, L) int64.
            attention_mask: (T, L) int64; 0 marks padding. None: no padding.
        """
        kwargs["return_dict"] = True
        pooling = self.config.text_pooling
        outputs = run_text_tower(self.text_model, input_ids, attention_mask, pooling, **kwargs)
        pooled = pool_text(outputs, input_ids, attention_mask, pooling, self.config.text_config)
        return with_pooler_output(outputs, self.text_projection(pooled))

    def encode_patches(self, pixel_values: Tensor, **kwargs) -> tuple[Tensor, Tensor, ModelOutput]:
        """Patches (B, P, C) after the tower's last norm, prefix tokens removed; pooled (B, C); the tower's output."""
        kwargs["return_dict"] = True
        outputs = run_vision_tower(self.vision_model, pixel_values, **kwargs)
        grid = self._grid_of(pixel_values)
        patches, pooled = read_patches(self.vision_model, outputs, grid, self.config.image_pooling)
        return patches, pooled, outputs

    def _grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        return grid_of(self.config.vision_config, pixel_values)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        regions: str | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Vision tower output whose `pooler_output` (B, D) is the image embedding, not normalised.

        Args:
            pixel_values: (B, 3, H, W) float.
            region_boxes, region_mask, region_coverage: see `get_region_features`. With boxes the embedding is the
                one fused with the regions, which is of unit length times its fusion; without, the plain global one.
            regions: "proposed" fuses with the regions that `propose_regions` finds.

        Raises:
            ValueError: for another value of `regions`, for `regions` together with boxes, and for a mask or coverage
                without boxes.
        """
        if regions not in (None, "proposed") or (regions is not None and region_boxes is not None):
            raise ValueError(
                f"get_image_features got regions={regions!r}{' and region_boxes' if region_boxes is not None else ''}; "
                "regions is 'proposed' or left out, and boxes are given or proposed, not both."
            )
        refuse_regions_without_boxes(region_boxes, region_mask, region_coverage)
        patches, pooled, outputs = self.encode_patches(pixel_values, **kwargs)
        image = self.visual_projection(pooled)
        if regions == "proposed":
            found = self.propose_from_patches(patches, self._grid_of(pixel_values), PROPOSALS_PER_IMAGE, None)
            region_boxes, region_mask = found.region_boxes, found.region_mask
        if region_boxes is not None:
            embedded, region_mask = self.embed_regions(
                patches, self._grid_of(pixel_values), region_boxes, region_mask, region_coverage
            )
            image = self.region_fusion(unit_length(image, self.config.embedding_norm), unit(embedded), region_mask)
        return with_pooler_output(outputs, image)

    @can_return_tuple
    def get_region_features(
        self,
        pixel_values: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Vision tower output whose `pooler_output` (B, R, D) holds the region embeddings, not normalised.

        Args:
            pixel_values: (B, 3, H, W) float.
            region_boxes: (B, R, 4) float32; (x0, y0, x1, y1) fractions of the frame, origin top-left, half-open.
            region_mask: (B, R) bool; False = padding, whose embedding is exactly zero. None: all are real.
            region_coverage: (B, R, h, w) float32 share of each patch that the region covers; None: from the boxes.
        """
        patches, _, outputs = self.encode_patches(pixel_values, **kwargs)
        regions, _ = self.embed_regions(
            patches, self._grid_of(pixel_values), region_boxes, region_mask, region_coverage
        )
        return with_pooler_output(outputs, regions)

    def get_dense_features(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """(B, D, h, w) float: every patch embedded as a region of its own, hence comparable with text embeddings."""
        patches, _, _ = self.encode_patches(pixel_values, **kwargs)
        grid = self._grid_of(pixel_values)
        return self.roi_processor.embed_patches(patches, grid).transpose(1, 2).unflatten(-1, grid)

    def propose_regions(
        self, pixel_values: Tensor, top_k: int = PROPOSALS_PER_IMAGE, threshold: float | None = None, **kwargs
    ) -> RegionProposals:
        """Regions worth a look, found in the image alone, best first; none where no score reaches the threshold.

        Args:
            pixel_values: (B, 3, H, W) float.
            top_k: K, most regions of an image.
            threshold: least score in [0, 1]; None takes `config.proposal_threshold`.
        """
        patches, _, _ = self.encode_patches(pixel_values, **kwargs)
        return self.propose_from_patches(patches, self._grid_of(pixel_values), top_k, threshold)

    def propose_from_patches(
        self, patches: Tensor, grid: tuple[int, int], top_k: int = PROPOSALS_PER_IMAGE, threshold: float | None = None
    ) -> RegionProposals:
        """`propose_regions` of images whose patches (B, P, C) are there already."""
        threshold = self.config.proposal_threshold if threshold is None else threshold
        return select_proposals(*self.proposal_head(patches, grid), top_k, threshold)

    def ground_phrases(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        top_k: int = PROPOSALS_PER_IMAGE,
        threshold: float | None = None,
    ) -> PhraseGrounding:
        """Where each of T phrases is seen in each of B images; the processor's `post_process_grounding` reads it.

        Args:
            pixel_values: (B, 3, H, W) float.
            input_ids, attention_mask: (T, L) int64.
            top_k, threshold: see `propose_regions`.
        """
        phrases = self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output
        phrases = unit(phrases)  # (T, D)
        patches, _, _ = self.encode_patches(pixel_values)
        grid = self._grid_of(pixel_values)
        dense = unit(self.roi_processor.embed_patches(patches, grid))  # (B, P, D)
        found = self.propose_from_patches(patches, grid, top_k, threshold)
        regions, _ = self.embed_regions(patches, grid, found.region_boxes, found.region_mask, None)
        return PhraseGrounding(
            heat=(dense @ phrases.t()).transpose(1, 2).unflatten(-1, grid),
            region_boxes=found.region_boxes,
            region_mask=found.region_mask,
            region_scores=found.scores,
            phrase_similarity=unit(regions) @ phrases.t(),
        )

    def embed_regions(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        region_boxes: Tensor,
        region_mask: Tensor | None,
        region_coverage: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (B, R, D), padding exactly zero, and the region mask (B, R)."""
        boxes, region_mask, coverage = settle_regions(patches, grid, region_boxes, region_mask, region_coverage)
        regions = self.roi_processor(patches, boxes, coverage, grid)
        return regions.masked_fill(~region_mask[..., None], 0.0), region_mask

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        region_input_ids: Tensor | None = None,
        region_attention_mask: Tensor | None = None,
        region_text_index: Tensor | None = None,
        text_index: Tensor | None = None,
        text_keys: Tensor | None = None,
        region_text_keys: Tensor | None = None,
        sample_id: list[str] | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> RegionMedClipOutput:
        """Embeddings and logits of a batch, and with `return_loss=True` the loss of this process alone.

        Args:
            input_ids, attention_mask: (T, L) int64 image-level texts.
            pixel_values: (B, 3, H, W) float.
            region_boxes, region_mask, region_coverage: see `get_region_features`.
            region_input_ids, region_attention_mask: (U, L) int64 unique region texts.
            region_text_index: (B, R) int64 row of each region's text, -1 = none.
            text_index: (B,) int64 row of each image's text, -1 = none. None: T = B, in order.
            text_keys, region_text_keys: (T,), (U,) int64. None: every text means something else. A text of key -1
                is a placeholder and takes no part.
            sample_id: names of the images, for messages only.
            return_loss: whether to compute `loss` and `loss_terms`; then the other `LOSS_TENSORS` may be given too.

        Raises:
            ValueError: if neither images nor texts are given, or a loss is asked for without both.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("RegionMedClipModel got neither pixel_values nor input_ids; give images, texts or both.")
        refuse_regions_without_boxes(region_boxes, region_mask, region_coverage)
        for_loss = {name: kwargs.pop(name) for name in LOSS_TENSORS if name in kwargs}
        kwargs["return_dict"] = True
        output = RegionMedClipOutput()
        if input_ids is not None:
            output.text_model_output = self.get_text_features(input_ids, attention_mask, **kwargs)
            output.text_embeds = unit_length(output.text_model_output.pooler_output, self.config.embedding_norm)
        if region_input_ids is not None:
            region_texts = self.get_text_features(region_input_ids, region_attention_mask, **kwargs)
            output.region_text_embeds = unit(region_texts.pooler_output)
        if pixel_values is not None:
            region_mask = self._embed_images(output, pixel_values, region_boxes, region_mask, region_coverage, **kwargs)
            add_logits(output, self.temperatures)
        if return_loss:
            keys = text_keys, region_text_keys
            batch = loss_inputs(output, region_mask, region_text_index, text_index, *keys, **for_loss)
            if region_boxes is not None:
                batch |= self.proposal_inputs(output, pixel_values, region_boxes, region_mask)
            output.loss_terms = {name: term.loss for name, term in self.compute_terms(batch).items()}
            output.loss = torch.stack(list(output.loss_terms.values())).sum() + self.temperatures.idle_loss()
            if region_boxes is None and self.training:
                output.loss = output.loss + self._idle_region_path(output, pixel_values)
        return output.in_field_order()

    def _idle_region_path(self, output: RegionMedClipOutput, pixel_values: Tensor) -> Tensor:
        """() zero through which every parameter of the region path gets a gradient of zero.

        Without it a batch without regions would leave them without one, for which data-parallel training waits in vain.
        """
        grid, tower_output = self._grid_of(pixel_values), output.vision_model_output
        patches, _ = read_patches(self.vision_model, tower_output, grid, self.config.image_pooling)
        nowhere = patches.new_zeros(patches.shape[0], 1, 4)
        regions, mask = self.embed_regions(patches, grid, nowhere, nowhere[..., 0].bool(), None)
        fused = self.region_fusion(output.image_embeds, regions, mask) - output.image_embeds
        rest = output.proposal_logits, output.proposal_boxes
        return regions.sum() + fused.sum() + sum(0.0 * value.sum() for value in rest)

    def _embed_images(
        self,
        output: RegionMedClipOutput,
        pixel_values: Tensor,
        region_boxes: Tensor | None,
        region_mask: Tensor | None,
        region_coverage: Tensor | None,
        **kwargs,
    ) -> Tensor | None:
        """Fills all of `output` that comes from the images; returns the region mask (B, R), None without regions."""
        patches, pooled, tower_output = self.encode_patches(pixel_values, **kwargs)
        grid = self._grid_of(pixel_values)
        image = self.visual_projection(pooled)
        output.vision_model_output = with_pooler_output(tower_output, image)
        output.image_embeds = unit_length(image, self.config.embedding_norm)
        output.proposal_logits, output.proposal_boxes = self.proposal_head(patches, grid)
        if region_boxes is None:
            return None
        regions, region_mask = self.embed_regions(patches, grid, region_boxes, region_mask, region_coverage)
        output.region_embeds = unit(regions)
        output.fused_image_embeds = unit(self.region_fusion(output.image_embeds, output.region_embeds, region_mask))
        return region_mask

    def proposal_inputs(
        self,
        output: RegionMedClipOutput,
        pixel_values: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None,
        is_complete: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What `proposal_loss` takes, by the names of `PROPOSAL_INPUTS`; the first arguments are those of `forward`."""
        if region_mask is None:
            region_mask = torch.ones(region_boxes.shape[:2], dtype=torch.bool, device=region_boxes.device)
        patches = patch_boxes(self._grid_of(pixel_values), pixel_values.device)
        is_complete = torch.ones_like(region_mask[:, 0]) if is_complete is None else is_complete
        values = (output.proposal_logits, output.proposal_boxes, region_boxes, region_mask, patches, is_complete)
        return dict(zip(PROPOSAL_INPUTS, values))

    def compute_terms(
        self,
        batch: dict[str, Tensor],
        names: tuple[str, ...] | None = None,
        kinds: dict[str, str] | None = None,
        similarity_filter: float | None = None,
    ) -> dict[str, LossTerm]:
        """The loss terms of `batch` at the model's temperatures; arguments as `batch_terms` takes them."""
        return batch_terms(batch, self.temperatures, self.temperatures.bias, names, kinds, similarity_filter)


class RegionMedClipForVisualQuestionAnswering(QuestionAnswering, RegionMedClipPreTrainedModel):
    """The encoder with a head that answers questions about an image and its regions; see `QuestionAnswering`.

    The answers are `config.id2label`. `from_pretrained` takes the folder of an encoder too: its head is then new.
    """

    main_input_name = "input_ids"

    def __init__(self, config: RegionMedClipConfig):
        super().__init__(config)
        self.regionmed_clip = RegionMedClipModel(config)
        self.answer_head = AnswerHead(config)
        self.post_init()


__all__ = [
    "RegionMedClipConfig",
    "RegionMedClipForVisualQuestionAnswering",
    "RegionMedClipModel",
    "RegionMedClipOutput",
    "RegionMedClipPreTrainedModel",
    "RegionMedClipQuestionAnsweringOutput",
]
