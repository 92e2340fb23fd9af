"""Answers to questions about images and their regions: by a learnt head, or by ranking statements without one.

Letters: B images, Q questions, L tokens, R regions, P = h x w patches in row-major order, D width of the shared space,
A answers.
"""

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from .answer_head import AskedQuestions, SeenEvidence
from .outputs_regionmed_clip import RegionMedClipQuestionAnsweringOutput, with_pooler_output
from .region_pooling import refuse_regions_without_boxes
from .shared_space import unit, unit_length
from .towers import grid_of


class AnswerRanking:
    """The method of RegionMedClipModel by which it answers untrained: it compares statements with what it sees."""

    def rank_answers(
        self,
        pixel_values: Tensor,
        answer_input_ids: Tensor,
        answer_attention_mask: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        regions: str | None = None,
    ) -> Tensor:
        """(B, A) cosine of what is seen and each candidate answer: the zero-shot mode, highest = best.

        What is seen is the region's own embedding where an image is given one region alone, else the image's: fused
        with its regions if any are given or proposed.

        Args:
            pixel_values: (B, 3, H, W) float.
            answer_input_ids, answer_attention_mask: (A, L) int64; whole statements, such as "There are two nodules."
            region_boxes, region_mask, region_coverage: see `RegionMedClipModel.get_region_features`.
            regions: "proposed" takes the regions that `propose_regions` finds.

        Raises:
            ValueError: as `RegionMedClipModel.get_image_features`.
        """
        check_regions("rank_answers", region_boxes, region_mask, region_coverage, regions)
        texts = self.get_text_features(answer_input_ids, answer_attention_mask, return_dict=True).pooler_output
        patches, pooled, _ = self.encode_patches(pixel_values)
        grid = grid_of(self.config.vision_config, pixel_values)
        seen = unit_length(self.visual_projection(pooled), self.config.embedding_norm)  # (B, D)
        if regions == "proposed":
            found = self.propose_from_patches(patches, grid)
            region_boxes, region_mask = found.region_boxes, found.region_mask
        if region_boxes is not None:
            embeds, region_mask = self.embed_regions(patches, grid, region_boxes, region_mask, region_coverage)
            embeds = unit(embeds)
            fused = unit(self.region_fusion(seen, embeds, region_mask))
            is_alone = region_mask.sum(dim=1, keepdim=True) == 1
            if regions == "proposed":
                is_alone = torch.zeros_like(is_alone)
            seen = torch.where(is_alone, embeds.sum(dim=1), fused)  # padding is zero
        return seen @ unit_length(texts, self.config.embedding_norm).t()


class QuestionAnswering:
    """The methods of RegionMedClipForVisualQuestionAnswering."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the text tower."""
        return self.regionmed_clip.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings of the text tower; `resize_token_embeddings` does it by this."""
        self.regionmed_clip.set_input_embeddings(value)

    def rank_answers(self, *args, **kwargs) -> Tensor:
        """The encoder's `rank_answers`: the zero-shot mode, in which the answer head takes no part."""
        return self.regionmed_clip.rank_answers(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_coverage: Tensor | None = None,
        image_index: Tensor | None = None,
        regions: str | None = None,
        labels: Tensor | None = None,
        encoded_images: tuple[Tensor, Tensor, ModelOutput] | None = None,
        **kwargs,
    ) -> RegionMedClipQuestionAnsweringOutput:
        """Logits of all answers to Q questions about B images, with `labels` their loss, and where the answer was read.

        The vision tower runs once for each image, the text tower once for each question. Of the encoder the region
        fusion, the temperatures and the proposal head have no part in the logits.

        Args:
            input_ids, attention_mask: (Q, L) int64 questions.
            pixel_values: (B, 3, H, W) float. None: the questions alone are read, `image_index` is not.
            region_boxes, region_mask, region_coverage: (Q, R, ...), else as `RegionMedClipModel.get_region_features`
                takes them: the regions of each question, which need not be those of another one of the same image.
            image_index: (Q,) int64 row of the image that each question asks of. None: Q = B, in order.
            regions: "proposed" gives every question the regions that `propose_regions` finds in its image.
            labels: (Q, A) float in [0, 1]; how right each answer is. The loss is the binary cross entropy, summed over
                answers and averaged over questions; a row of zeros says that no answer is right.
            encoded_images: what the encoder's `encode_patches` gives for `pixel_values`, where the caller has it.

        Raises:
            ValueError: without a question; for shapes that do not fit; for regions both given and proposed, or without
                an image.
        """
        if input_ids is None:
            raise ValueError(
                "RegionMedClipForVisualQuestionAnswering got no input_ids; give a question for each answer wanted. To "
                "embed images alone take RegionMedClipModel."
            )
        check_regions(type(self).__name__, region_boxes, region_mask, region_coverage, regions)
        questions, text_output = self._ask(input_ids, attention_mask, **kwargs)
        has_regions = region_boxes is not None or regions is not None
        if pixel_values is None:
            evidence, vision_output = self._see_nothing(questions, has_regions), None
        else:
            image_index = self._settle_image_index(image_index, input_ids, pixel_values)
            given = (region_boxes, region_mask, region_coverage)
            encoded_images = encoded_images or self.regionmed_clip.encode_patches(pixel_values, **kwargs)
            evidence, vision_output = self._see(encoded_images, pixel_values, image_index, given, regions)
        logits, region_attention, patch_attention = self.answer_head(questions, evidence)
        return RegionMedClipQuestionAnsweringOutput(
            loss=None if labels is None else answer_loss(logits, labels),
            logits=logits,
            region_attention=region_attention if has_regions else None,
            patch_attention=patch_attention if evidence.is_seen else None,
            region_boxes=evidence.region_boxes if has_regions else None,
            region_mask=evidence.region_mask if has_regions else None,
            vision_model_output=vision_output,
            text_model_output=text_output,
        )

    def _ask(self, input_ids: Tensor, attention_mask: Tensor | None, **kwargs):
        """The questions, and the text tower's output for them."""
        config = self.config
        kwargs["return_dict"] = True
        output = self.regionmed_clip.get_text_features(input_ids, attention_mask, **kwargs)
        if attention_mask is None and config.text_pooling == "last":  # padded by the tower, and maybe by the caller
            mask = input_ids != config.text_config.pad_token_id
        else:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        num_added = output.last_hidden_state.shape[1] - mask.shape[1]
        mask = nn.functional.pad(mask.bool(), (0, num_added), value=False)
        embeds = unit_length(output.pooler_output, config.embedding_norm)
        return AskedQuestions(output.last_hidden_state, mask, embeds), output

    @staticmethod
    def _settle_image_index(image_index: Tensor | None, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """(Q,) int64, given or by order; a ValueError where it does not fit the questions."""
        num_questions, num_images = len(input_ids), len(pixel_values)
        if image_index is None:
            if num_questions != num_images:
                raise ValueError(
                    f"there are {num_questions} questions and {num_images} images; without image_index each question "
                    "asks of the image in its place. Give image_index (Q,), the row of each question's image."
                )
            return torch.arange(num_images, device=pixel_values.device)
        if tuple(image_index.shape) != (num_questions,) or image_index.dtype != torch.int64:
            raise ValueError(
                f"image_index has shape {tuple(image_index.shape)} and type {image_index.dtype}; it must be "
                f"(Q,) = ({num_questions},) and torch.int64: the row in pixel_values of each question's image."
            )
        return image_index

    def _see(
        self,
        encoded_images: tuple[Tensor, Tensor, ModelOutput],
        pixel_values: Tensor,
        image_index: Tensor,
        given: tuple[Tensor | None, Tensor | None, Tensor | None],
        regions: str | None,
    ):
        """The evidence for Q questions, and the vision tower's output; `given` are boxes, mask and coverage."""
        encoder = self.regionmed_clip
        patches, pooled, output = encoded_images
        grid = grid_of(self.config.vision_config, pixel_values)
        image = encoder.visual_projection(pooled)
        boxes, mask, coverage = given
        if regions == "proposed":
            with torch.no_grad():  # an answer does not teach where to propose
                found = encoder.propose_from_patches(patches, grid)
            boxes, mask = found.region_boxes[image_index], found.region_mask[image_index]
        has_regions = boxes is not None
        if not has_regions:
            boxes = torch.zeros(len(image_index), 1, 4, device=patches.device)
            mask = torch.zeros(len(image_index), 1, dtype=torch.bool, device=patches.device)
        if has_regions or self.training:  # in training always, so that every parameter gets a gradient
            own_patches = patches.index_select(0, image_index)  # (Q, P, C)
            embeds, mask = encoder.embed_regions(own_patches, grid, boxes, mask, coverage)
        else:
            embeds = patches.new_zeros(len(image_index), 1, self.config.projection_dim)
        boxes = boxes.float().masked_fill(~mask[..., None], 0.0)
        image_embeds = unit_length(image, self.config.embedding_norm)
        evidence = SeenEvidence(image_embeds, patches, grid, image_index, unit(embeds), boxes, mask, True)
        return evidence, with_pooler_output(output, image)

    def _see_nothing(self, questions: AskedQuestions, has_regions: bool) -> SeenEvidence:
        """The evidence of no image: zeros of the right shapes, masked; a ValueError if there are regions of it."""
        if has_regions:
            raise ValueError(
                "RegionMedClipForVisualQuestionAnswering got regions and no pixel_values; regions are of an image. "
                "Give the image, or leave the regions out."
            )
        config, embeds = self.config, questions.embeds
        num_questions = len(embeds)
        return SeenEvidence(
            image_embeds=embeds.new_zeros(1, config.projection_dim),
            patches=embeds.new_zeros(1, 1, config.vision_config.hidden_size),
            grid=(1, 1),
            image_index=torch.zeros(num_questions, dtype=torch.int64, device=embeds.device),
            regions=embeds.new_zeros(num_questions, 1, config.projection_dim),
            region_boxes=torch.zeros(num_questions, 1, 4, device=embeds.device),
            region_mask=torch.zeros(num_questions, 1, dtype=torch.bool, device=embeds.device),
            is_seen=False,
        )


def check_regions(
    caller: str, boxes: Tensor | None, mask: Tensor | None, coverage: Tensor | None, regions: str | None
) -> None:
    """None; a ValueError for an unknown `regions`, regions given and proposed, a mask or coverage without boxes."""
    if regions not in (None, "proposed") or (regions is not None and boxes is not None):
        raise ValueError(
            f"{caller} got regions={regions!r}{' and region_boxes' if boxes is not None else ''}; regions is "
            "'proposed' or left out, and boxes are given or proposed, not both."
        )
    refuse_regions_without_boxes(boxes, mask, coverage)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """() float binary cross entropy of logits (Q, A) and soft labels (Q, A), summed over answers, mean over questions.

    Source: ViltForQuestionAnswering of transformers; VQA's soft scores, arXiv:1505.00468, sec. 3.

    Raises:
        ValueError: for labels of another shape or that are no scores.
    """
    if labels.shape != logits.shape or not labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; they must be (Q, A) = "
            f"{tuple(logits.shape)} like the logits, and float: how right each answer is, in [0, 1]."
        )
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * labels.shape[1]
