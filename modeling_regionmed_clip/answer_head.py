"""The answer head: questions and what is seen attend to each other, and a classifier reads the answer.

Letters: Q questions, L tokens, R regions of a question, P = h x w patches in row-major order, V tokens of what is seen,
C width of the vision tower, D width of the shared space, W width of this head, A answers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .region_pooling import patch_boxes
from .roi_processor import BoxEncoding, CrossAttention

MASKED_SCORE = torch.finfo(torch.float32).min / 4  # its logarithm of a weight stays finite, so that nothing is NaN
TOKEN_KINDS = ("answer", "nothing", "image", "patch", "region")


@dataclass
class AskedQuestions:
    """What the text tower gives for Q questions.

    Args:
        states: (Q, L, text width) float.
        mask: (Q, L) bool; True = a token of the question, False = padding.
        embeds: (Q, D) float; unit length.
    """

    states: Tensor
    mask: Tensor
    embeds: Tensor


@dataclass
class SeenEvidence:
    """What the image side gives for Q questions; of no image `is_seen` is False and all else zeros.

    Args:
        image_embeds: (B, D) float; unit length.
        patches: (B, P, C) float.
        grid: (h, w) with h * w = P.
        image_index: (Q,) int64; the image of each question.
        regions: (Q, R, D) float; unit length, padding exactly zero.
        region_boxes: (Q, R, 4) float32; fractions of the frame.
        region_mask: (Q, R) bool; True = a real region.
        is_seen: whether there is an image.
    """

    image_embeds: Tensor
    patches: Tensor
    grid: tuple[int, int]
    image_index: Tensor
    regions: Tensor
    region_boxes: Tensor
    region_mask: Tensor
    is_seen: bool


class AnswerClassifier(nn.Linear):
    """A linear layer whose bias starts at the logit of 1 / A; the model's `_init_weights` knows it by type."""


class FeedForward(nn.Sequential):
    """A two-layer perceptron behind a norm, `ratio` times as wide inside, as a residual branch."""

    def __init__(self, width: int, ratio: int, dropout: float):
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, ratio * width),
            nn.GELU(),
            nn.Linear(ratio * width, width),
            nn.Dropout(dropout),
        )


class CoAttentionBlock(GradientCheckpointingLayer):
    """A pre-norm block: questions attend to themselves, then questions and what is seen to each other.

    Source: the co-attention of METER, arXiv:2111.02387, sec. 3.2, without self-attention of what is seen: patches and
    regions have seen each other in the encoder.
    """

    def __init__(self, config):
        super().__init__()
        width, num_heads, dropout = config.answer_hidden_size, config.answer_num_heads, config.answer_dropout
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = CrossAttention(config, width, num_heads)
        self.question_norm = nn.LayerNorm(width)
        self.seen_norm = nn.LayerNorm(width)
        self.question_to_seen = CrossAttention(config, width, num_heads)
        self.seen_to_question = CrossAttention(config, width, num_heads)
        self.question_mlp = FeedForward(width, 4, dropout)
        self.seen_mlp = FeedForward(width, 2, dropout)  # over all patches of every question: the most costly layer
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, questions: Tensor, seen: Tensor, question_mask: Tensor, seen_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Questions (Q, 1 + L, W) and what is seen (Q, V, W) after one block; masks (Q, 1 + L), (Q, V) bool."""
        states = self.self_norm(questions)
        questions = questions + self.dropout(self.self_attention(states, states, states, question_mask))
        asked, shown = self.question_norm(questions), self.seen_norm(seen)
        questions = questions + self.dropout(self.question_to_seen(asked, shown, shown, seen_mask))
        seen = seen + self.dropout(self.seen_to_question(shown, asked, asked, question_mask))
        return questions + self.question_mlp(questions), seen + self.seen_mlp(seen)


class AnswerReadout(nn.Module):
    """One more look of the answer's state at what is seen, its weights written out to be shown."""

    def __init__(self, config):
        super().__init__()
        width = config.answer_hidden_size
        self.num_heads = config.answer_num_heads
        self.scaling = (width // self.num_heads) ** -0.5
        self.query_norm, self.seen_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)  # a key bias cancels in the softmax
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, answer: Tensor, seen: Tensor, seen_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The state (Q, W) after the look, and the logarithm of the mean weight over heads (Q, V) float32.

        Args:
            answer: (Q, W) float.
            seen: (Q, V, W) float.
            seen_mask: (Q, V) bool; at least one True a row.
        """
        shown = self.seen_norm(seen)
        query = self.q_proj(self.query_norm(answer)).unflatten(-1, (self.num_heads, 1, -1))  # (Q, heads, 1, W / heads)
        key = self.k_proj(shown).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (Q, heads, V, W / heads)
        value = self.v_proj(shown).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = ((query * self.scaling) @ key.transpose(2, 3)).float()  # (Q, heads, 1, V)
        scores = scores.masked_fill(~seen_mask[:, None, None], MASKED_SCORE)
        log_weights = scores.log_softmax(dim=-1)
        attended = (log_weights.exp().to(value.dtype) @ value).flatten(1)  # (Q, W)
        mean_weights = log_weights[:, :, 0].logsumexp(dim=1)  # of the heads, but for the constant log(heads)
        return answer + self.out_proj(attended), mean_weights


class RegionReading(nn.Module):
    """What each region says to a question, to be summed: a sum can count, a mean cannot.

    Question and region meet in the shared space, channel by channel. Sources: low-rank bilinear pooling,
    arXiv:1610.04325; sums over sets, arXiv:1703.06114.
    """

    def __init__(self, config):
        super().__init__()
        width, shared = config.answer_hidden_size, config.projection_dim
        self.match = nn.Linear(shared, width, bias=False)
        self.region = nn.Linear(width, width, bias=False)
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, answer: Tensor, matches: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """(Q, R, W); padding exactly zero.

        Args:
            answer: (Q, W) float; what is asked for, and what was seen so far.
            matches: (Q, R, D) float; `match_channels` of the question and each region.
            regions: (Q, R, W) float; their tokens.
            region_mask: (Q, R) bool.
        """
        states = self.mlp(self.match(matches) + self.region(regions) + self.answer(answer)[:, None])
        return states * region_mask[..., None].to(states.dtype)


def match_channels(one: Tensor, other: Tensor) -> Tensor:
    """(..., D) products of unit vectors, channel by channel, times D: about 1 in size, and their mean is the cosine."""
    return one * other * one.shape[-1]


class AnswerHead(nn.Module):
    """Logits of A answers from question tokens, patches and regions; see `RegionMedClipConfig`, fields `answer_...`.

    What is seen are V = 2 + P + R tokens: "nothing" (where to look if nothing fits, and all there is without an image),
    the image's embedding, its patches and the question's regions, each told its kind and where it lies. Beside what
    attention finds there, the classifier reads how the question matches the image and each region in the shared space,
    for which the encoder was trained.
    """

    def __init__(self, config):
        super().__init__()
        width, shared = config.answer_hidden_size, config.projection_dim
        text_width, vision_width = config.text_config.hidden_size, config.vision_config.hidden_size
        self.kinds = nn.Embedding(len(TOKEN_KINDS), width)
        self.token_projection = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.question_projection = nn.Sequential(nn.LayerNorm(shared), nn.Linear(shared, width))
        self.image_projection = nn.Sequential(nn.LayerNorm(shared), nn.Linear(shared, width))
        self.patch_projection = nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, width))
        self.region_projection = nn.Sequential(nn.LayerNorm(shared), nn.Linear(shared, width))
        self.box_encoding = BoxEncoding(config.roi_num_frequencies, width)
        self.blocks = nn.ModuleList(CoAttentionBlock(config) for _ in range(config.answer_num_layers))
        self.readout = AnswerReadout(config)
        self.answer_norm = nn.LayerNorm(width)
        self.region_reading = RegionReading(config)
        self.image_match = nn.Linear(shared, width, bias=False)
        self.hidden = nn.Sequential(
            nn.Linear(3 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Dropout(config.answer_dropout),
        )
        self.classifier = AnswerClassifier(2 * width, config.num_labels)

    def forward(self, questions: AskedQuestions, evidence: SeenEvidence) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (Q, A); attention over the regions (Q, R) and over the patches (Q, h, w), float32.

        Each attention sums to 1 over what is real, and is 0 where nothing is. A region's is its share in what the
        regions change: how far the probabilities of the answers move when its reading is left out of the sum. A
        patch's is its weight in the last look.
        """
        asked, question_mask = self._question_tokens(questions)
        seen, seen_mask = self._seen_tokens(evidence)
        num_patches = evidence.patches.shape[1]
        regions = seen[:, 2 + num_patches :]  # (Q, R, W) before the blocks mix them with the question
        for block in self.blocks:
            asked, seen = block(asked, seen, question_mask, seen_mask)
        answer, log_weights = self.readout(asked[:, 0], seen, seen_mask)
        patch_attention = log_weights[:, 2 : 2 + num_patches].softmax(dim=-1) * evidence.is_seen
        answer = self.answer_norm(answer)
        matches = match_channels(questions.embeds[:, None], evidence.regions)
        readings = self.region_reading(answer, matches, regions, evidence.region_mask)
        image_embeds = evidence.image_embeds.index_select(0, evidence.image_index)
        of_image = self.image_match(match_channels(questions.embeds, image_embeds))
        logits = self._classify(answer, readings.sum(dim=1), of_image)
        region_attention = self._shares(logits, answer, readings, of_image, evidence.region_mask)
        return logits, region_attention, patch_attention.unflatten(-1, evidence.grid)

    def _classify(self, answer: Tensor, of_regions: Tensor, of_image: Tensor) -> Tensor:
        """Logits (..., A) from the answer's state, the sum over regions and the match with the image, (..., W) each."""
        return self.classifier(self.hidden(torch.cat([answer, of_regions, of_image], dim=-1)))

    @torch.no_grad()
    def _shares(
        self, logits: Tensor, answer: Tensor, readings: Tensor, of_image: Tensor, region_mask: Tensor
    ) -> Tensor:
        """(Q, R) float32 share of each region in how far leaving one out moves the probabilities of the answers."""
        others = readings.sum(dim=1, keepdim=True) - readings  # (Q, R, W) of all regions but one
        answer, of_image = answer[:, None].expand_as(others), of_image[:, None].expand_as(others)
        without = self._classify(answer, others, of_image).float().sigmoid()  # (Q, R, A)
        moved = (logits[:, None].float().sigmoid() - without).abs().sum(dim=-1)
        moved = (moved + torch.finfo(torch.float32).tiny) * region_mask
        return moved / moved.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def _kind(self, name: str) -> Tensor:
        """(W,) the learnt embedding of a kind of token."""
        return self.kinds.weight[TOKEN_KINDS.index(name)]

    def _question_tokens(self, questions: AskedQuestions) -> tuple[Tensor, Tensor]:
        """Tokens (Q, 1 + L, W), the answer's first, and their mask (Q, 1 + L)."""
        answer = self.question_projection(questions.embeds) + self._kind("answer")
        tokens = torch.cat([answer[:, None], self.token_projection(questions.states)], dim=1)
        return tokens, nn.functional.pad(questions.mask, (1, 0), value=True)

    def _seen_tokens(self, evidence: SeenEvidence) -> tuple[Tensor, Tensor]:
        """Tokens (Q, V, W) in the order nothing, image, patches, regions, and their mask (Q, V)."""
        places = self.box_encoding(patch_boxes(evidence.grid, evidence.patches.device))  # (P, W)
        image = self.image_projection(evidence.image_embeds) + self._kind("image")
        patches = self.patch_projection(evidence.patches) + places + self._kind("patch")
        of_image = torch.cat([image[:, None], patches], dim=1)
        of_image = of_image.index_select(0, evidence.image_index)  # (Q, 1 + P, W), not `[index]`: see its test
        regions = self.region_projection(evidence.regions) + self.box_encoding(evidence.region_boxes)
        regions = regions + self._kind("region")
        nothing = self._kind("nothing").expand(len(regions), 1, -1)
        mask = evidence.region_mask.new_full(of_image.shape[:2], evidence.is_seen)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask, evidence.region_mask], dim=1)
        return torch.cat([nothing.to(of_image.dtype), of_image, regions.to(of_image.dtype)], dim=1), mask


__all__ = ["AnswerClassifier", "AnswerHead", "AskedQuestions", "SeenEvidence"]
