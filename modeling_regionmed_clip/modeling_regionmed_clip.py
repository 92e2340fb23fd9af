"""RegionMed-CLIP: a medical image-text dual encoder whose ROI processor embeds regions and fuses them with the image.

Letters, the same in every comment: B images, R regions, T image-level texts, U unique region texts, L tokens,
P = h x w patches in row-major order, C width of the vision tower, D width of the shared space.
"""

import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_regionmed_clip import RegionMedClipConfig
from .loss_regionmed_clip import ContrastiveTerm, contrastive_terms, loss_inputs
from .roi_processor import RegionFusion, RoiProcessor, box_coverage

CONTRASTIVE_TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")


@dataclass
class RegionMedClipOutput(ModelOutput):
    """What one forward pass gives; embeddings are unit length, rows of padding regions exactly zero.

    Args:
        loss: () float; the sum of `loss_terms`, with `return_loss=True`.
        loss_terms: name -> () float; `image_text`, and with regions the others of `CONTRASTIVE_TERMS`.
        logits_per_image, logits_per_text: (B, T), (T, B) float; scaled cosine of the plain global embedding and texts.
        logits_per_region: (B, R, U) float; against the region texts, or (B, R, T) where none were given.
        logits_per_fused_image: (B, T) float; with the fused embedding.
        image_embeds, fused_image_embeds: (B, D) float.
        text_embeds, region_text_embeds: (T, D), (U, D) float.
        region_embeds: (B, R, D) float.
        proposal_logits, proposal_boxes: (B, P), (B, P, 4) float; filled once the proposal head exists.
        vision_model_output, text_model_output: what the towers gave.
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


class Temperatures(nn.Module):
    """One learnable log inverse temperature, shape (1,), for each contrastive term."""

    def __init__(self, config: RegionMedClipConfig):
        super().__init__()
        self.log_scale_max = math.log(config.logit_scale_max)
        for name in CONTRASTIVE_TERMS:
            self.register_parameter(name, nn.Parameter(torch.full((1,), config.logit_scale_init_value)))

    def forward(self, name: str) -> Tensor:
        """(1,) float inverse temperature of a term."""
        return getattr(self, name).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Brings every inverse temperature back to the configured maximum; called after an optimiser step.

        (A clamp in the forward pass would have no gradient above the maximum: the value could never come down.)
        """
        for parameter in self.parameters():
            parameter.clamp_(max=self.log_scale_max)


class RegionMedClipPreTrainedModel(PreTrainedModel):
    config_class = RegionMedClipConfig
    base_model_prefix = "regionmed_clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
        elif isinstance(module, Temperatures):
            for name in CONTRASTIVE_TERMS:
                init.constant_(getattr(module, name), self.config.logit_scale_init_value)
        elif isinstance(module, RegionFusion):
            init.zeros_(module.alpha)


class RegionMedClipModel(RegionMedClipPreTrainedModel):
    """Dual encoder with a region path; see `RegionMedClipConfig` for its parts and DESIGN for the tensor contract.

    With no region given the global embedding is the plain encoder's: the ROI processor is not even run.
    """

    def __init__(self, config: RegionMedClipConfig):
        super().__init__(config)
        self.vision_model = _build_tower(config.vision_config)
        self.text_model = _build_tower(config.text_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.roi_processor = RoiProcessor(config)
        self.region_fusion = RegionFusion(config)
        self.temperatures = Temperatures(config)
        self.post_init()

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Text tower output whose `pooler_output` (T, D) is the projected text embedding, not normalised.

        Args:
            input_ids: (T, L) int64.
            attention_mask: (T, L) int64; 0 marks padding. None: no padding.
        """
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and input_ids.shape[1] > limit:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens a text and the text tower {limit} positions; truncate the "
                "texts, in a pipeline with tokenizer_kwargs={'truncation': True}."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        pooled = self._pool_text(outputs, input_ids, attention_mask)
        outputs["pooler_output"] = self.text_projection(pooled)
        return outputs

    def _pool_text(self, outputs: ModelOutput, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(T, text width) pooled text state by `config.text_pooling`."""
        states = outputs.last_hidden_state  # (T, L, text width)
        pooling = self.config.text_pooling
        if pooling == "cls":
            return states[:, 0]
        if pooling == "mean":
            weights = attention_mask[..., None].to(states.dtype)
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
        if pooling == "eos" and self.config.text_config.eos_token_id is not None:
            first_eos = (input_ids == self.config.text_config.eos_token_id).int().argmax(dim=-1)
            return states[torch.arange(states.shape[0], device=states.device), first_eos]
        if outputs.get("pooler_output") is None:
            raise ValueError(
                f"text_pooling {pooling!r} needs the pooled output of the text tower, and "
                f"{self.config.text_config.model_type} has none; choose 'cls' or 'mean' in RegionMedClipConfig."
            )
        return outputs.pooler_output

    def encode_patches(self, pixel_values: Tensor, **kwargs) -> tuple[Tensor, Tensor, ModelOutput]:
        """Patches (B, P, C) after the tower's last norm, prefix tokens removed; pooled (B, C); the tower's output."""
        outputs = self.vision_model(pixel_values=pixel_values, **kwargs)
        height, width = self._grid_of(pixel_values)
        patches = outputs.last_hidden_state[:, -height * width :]  # prefix tokens (class, registers) come first
        if self.config.vision_config.model_type == "clip_vision_model":
            patches = self.vision_model.post_layernorm(patches)  # CLIP norms its class token only
        if self.config.image_pooling == "mean":
            pooled = patches.mean(dim=1)
        elif outputs.get("pooler_output") is not None:
            pooled = outputs.pooler_output
        else:
            pooled = outputs.last_hidden_state[:, 0]
        return patches, pooled, outputs

    def _grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        patch_size = self.config.vision_config.patch_size
        return pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Vision tower output whose `pooler_output` (B, D) is the image embedding, not normalised.

        Args:
            pixel_values: (B, 3, H, W) float.
            region_boxes, region_mask, region_coverage: see `get_region_features`. With boxes the embedding is the
                one fused with the regions, which is of unit length times its fusion; without, the plain global one.
        """
        patches, pooled, outputs = self.encode_patches(pixel_values, **kwargs)
        image = self.visual_projection(pooled)
        if region_boxes is not None:
            regions, region_mask = self._embed_regions(
                patches, self._grid_of(pixel_values), region_boxes, region_mask, region_coverage
            )
            image = self.region_fusion(_unit(image), _unit(regions), region_mask)
        outputs["pooler_output"] = image
        return outputs

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
        outputs["pooler_output"], _ = self._embed_regions(
            patches, self._grid_of(pixel_values), region_boxes, region_mask, region_coverage
        )
        return outputs

    def get_dense_features(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """(B, D, h, w) float: every patch embedded as a region of its own, hence comparable with text embeddings."""
        patches, _, _ = self.encode_patches(pixel_values, **kwargs)
        grid = self._grid_of(pixel_values)
        return self.roi_processor.embed_patches(patches, grid).transpose(1, 2).unflatten(-1, grid)

    def _embed_regions(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        region_boxes: Tensor,
        region_mask: Tensor | None,
        region_coverage: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings (B, R, D), padding exactly zero, and the region mask (B, R)."""
        if region_boxes.ndim != 3 or region_boxes.shape[0] != patches.shape[0] or region_boxes.shape[-1] != 4:
            raise ValueError(
                f"region_boxes has shape {tuple(region_boxes.shape)}; it must be (B, R, 4) with B = {patches.shape[0]} "
                "images, as the processor makes it."
            )
        if region_mask is None:
            region_mask = torch.ones(region_boxes.shape[:2], dtype=torch.bool, device=region_boxes.device)
        if region_coverage is None:
            region_coverage = box_coverage(region_boxes, grid)
        elif tuple(region_coverage.shape) != (*region_boxes.shape[:2], *grid):
            raise ValueError(
                f"region_coverage has shape {tuple(region_coverage.shape)}; it must be (B, R, h, w) = "
                f"{(*region_boxes.shape[:2], *grid)}: give the image processor patch_size "
                f"{self.config.vision_config.patch_size} and the size of the pixel values."
            )
        regions = self.roi_processor(patches, region_boxes, region_coverage.flatten(2), grid)
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
        """Embeddings and logits of a batch, and with `return_loss=True` the contrastive loss of this process alone.

        Args:
            input_ids, attention_mask: (T, L) int64 image-level texts.
            pixel_values: (B, 3, H, W) float.
            region_boxes, region_mask, region_coverage: see `get_region_features`.
            region_input_ids, region_attention_mask: (U, L) int64 unique region texts.
            region_text_index: (B, R) int64 row of each region's text, -1 = none.
            text_index: (B,) int64 row of each image's text. None: T = B, in order.
            text_keys, region_text_keys: (T,), (U,) int64. None: every text means something else. A text of key -1
                is a placeholder and takes no part.
            sample_id: names of the images, for messages only.
            return_loss: whether to compute `loss` and `loss_terms`.

        Raises:
            ValueError: if neither images nor texts are given, or a loss is asked for without both.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("RegionMedClipModel got neither pixel_values nor input_ids; give images, texts or both.")
        output = RegionMedClipOutput()
        if input_ids is not None:
            output.text_model_output = self.get_text_features(input_ids, attention_mask, **kwargs)
            output.text_embeds = _unit(output.text_model_output.pooler_output)
        if region_input_ids is not None:
            region_texts = self.get_text_features(region_input_ids, region_attention_mask, **kwargs)
            output.region_text_embeds = _unit(region_texts.pooler_output)
        if pixel_values is not None:
            region_mask = self._embed_images(output, pixel_values, region_boxes, region_mask, region_coverage, **kwargs)
            self._add_logits(output)
        if return_loss:
            batch = loss_inputs(output, region_mask, region_text_index, text_index, text_keys, region_text_keys)
            terms = self.compute_terms(batch)
            output.loss_terms = {name: term.loss for name, term in terms.items()}
            output.loss = torch.stack(list(output.loss_terms.values())).sum()
        return output

    def _embed_images(
        self,
        output: RegionMedClipOutput,
        pixel_values: Tensor,
        region_boxes: Tensor | None,
        region_mask: Tensor | None,
        region_coverage: Tensor | None,
        **kwargs,
    ) -> Tensor | None:
        """Fills the image, region and fused embeddings of `output`; returns the region mask (B, R), None without."""
        patches, pooled, output.vision_model_output = self.encode_patches(pixel_values, **kwargs)
        output.image_embeds = _unit(self.visual_projection(pooled))
        if region_boxes is None:
            return None
        regions, region_mask = self._embed_regions(
            patches, self._grid_of(pixel_values), region_boxes, region_mask, region_coverage
        )
        output.region_embeds = _unit(regions)
        output.fused_image_embeds = _unit(self.region_fusion(output.image_embeds, output.region_embeds, region_mask))
        return region_mask

    def _add_logits(self, output: RegionMedClipOutput) -> None:
        region_texts = output.region_text_embeds if output.region_text_embeds is not None else output.text_embeds
        if output.text_embeds is not None:
            scaled_texts = self.temperatures("image_text") * output.text_embeds.t()  # (D, T)
            output.logits_per_image = output.image_embeds @ scaled_texts
            output.logits_per_text = output.logits_per_image.t()
            if output.fused_image_embeds is not None:
                fused_texts = self.temperatures("fused_image_text") * output.text_embeds.t()
                output.logits_per_fused_image = output.fused_image_embeds @ fused_texts
        if output.region_embeds is not None and region_texts is not None:
            output.logits_per_region = output.region_embeds @ (self.temperatures("region_text") * region_texts.t())

    def compute_terms(
        self, batch: dict[str, Tensor], names: tuple[str, ...] | None = None
    ) -> dict[str, ContrastiveTerm]:
        """The contrastive terms of `batch` (see `contrastive_terms`) at the model's temperatures.

        Args:
            names: terms wanted; None takes every term, without regions `image_text` alone.
        """
        if names is None:
            names = CONTRASTIVE_TERMS if "region" in batch else ("image_text",)
        return contrastive_terms(batch, {name: self.temperatures(name) for name in names}, names)


def _unit(embeddings: Tensor) -> Tensor:
    """Embeddings of unit length along the last axis; a zero row stays exactly zero."""
    return nn.functional.normalize(embeddings, dim=-1)


def _build_tower(config) -> PreTrainedModel:
    """A tower with random weights, without the pooling layer that nothing here would train."""
    tower_class = MODEL_MAPPING[type(config)]
    takes_pooling = "add_pooling_layer" in inspect.signature(tower_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooling else {}))


__all__ = ["RegionMedClipConfig", "RegionMedClipModel", "RegionMedClipOutput", "RegionMedClipPreTrainedModel"]
