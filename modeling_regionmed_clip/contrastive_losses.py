"""InfoNCE and pairwise sigmoid losses over the pairs that `PairRules` names, and the choice among hard negatives.

Both contrastive losses exist in two forms of one value and gradient. The whole form keeps the (N, M) matrix of logits
and lets autograd differentiate it; the blocked form walks over blocks of rows twice, once for the value and once for
the gradient, and keeps nothing between but a number for every row and column. Large products take the blocked form.
All is computed in float32 (or the float64 of the inputs), under autocast too.

Letters: N rows, M candidates, D width of the shared space, H hard negatives of a region.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .contrastive_pairs import PairRules, at_least_float32
from .loss_terms import LossTerm

BLOCK_ROWS = 512
LARGEST_WHOLE = 1 << 20  # logits kept whole: 4 MB in float32, and a few times that for their gradient
SOFTPLUS_THRESHOLD = 40.0  # softplus(x) = x above it: to float64's last bit but two


def info_nce_loss(rows: Tensor, candidates: Tensor, rules: PairRules, logit_scale: Tensor) -> LossTerm:
    """Symmetric InfoNCE: -log softmax over the taken pairs of a row (a candidate), both directions averaged.

    A row's loss is the mean over its positives; rows and candidates without one are left out. With one positive each
    and nothing masked it is CLIP's loss.

    Args:
        rows, candidates: (N, D), (M, D) float; unit length.
        rules: which pairs are positive, negative and masked.
        logit_scale: () or (1,) float; inverse temperature.

    Returns:
        The term; its loss is exactly zero, with a gradient, when no pair is positive.

    Source: InfoNCE as in CLIP, arXiv:2103.00020; several positives as L_out of arXiv:2004.11362, eq. 2.
    """
    is_small = rows.shape[0] * candidates.shape[0] <= LARGEST_WHOLE
    return (whole_info_nce if is_small else blocked_info_nce)(rows, candidates, rules, logit_scale)


def sigmoid_loss(rows: Tensor, candidates: Tensor, rules: PairRules, logit_scale: Tensor, bias: Tensor) -> LossTerm:
    """-log sigmoid of the logit of every positive and of minus that of every negative, summed, over the rows' number.

    Args:
        rows, candidates, rules, logit_scale: as `info_nce_loss` takes them.
        bias: () or (1,) float; added to every logit.

    Returns:
        The term; the sum is divided by the rows that take part, at least 1.

    Source: SigLIP, arXiv:2303.15343, eq. 1.
    """
    is_small = rows.shape[0] * candidates.shape[0] <= LARGEST_WHOLE
    return (whole_sigmoid if is_small else blocked_sigmoid)(rows, candidates, rules, logit_scale, bias)


def hard_negative_loss(cosines: Tensor, mask: Tensor, logit_scale: Tensor) -> LossTerm:
    """-log softmax of each region's own text among it and the region's hard negatives, averaged over regions.

    Args:
        cosines: (N, 1 + H) float; of the region's embedding with its own text's, then with its negatives'.
        mask: (N, 1 + H) bool; False = no text. Regions without their own text, or without a negative, take no part.
        logit_scale: () or (1,) float; inverse temperature.

    Returns:
        The term; its loss is exactly zero, with a gradient, when no region takes part.
    """
    takes_part = mask[:, 0] & mask[:, 1:].any(dim=1)
    logits = at_least_float32(logit_scale) * at_least_float32(cosines)
    log_softmax = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    num_regions = takes_part.sum()
    total = -log_softmax[:, 0].masked_fill(~takes_part, 0.0).sum()
    num_negatives = (mask[:, 1:] & takes_part[:, None]).sum()
    return LossTerm(total / num_regions.clamp_min(1), num_regions, num_negatives, torch.zeros_like(num_regions))


def whole_info_nce(rows: Tensor, candidates: Tensor, rules: PairRules, logit_scale: Tensor) -> LossTerm:
    """`info_nce_loss` with all logits in memory at once."""
    with full_precision(rows):
        logits = at_least_float32(logit_scale) * (at_least_float32(rows) @ at_least_float32(candidates).t())  # (N, M)
        positive, taken = rules.block(0, rules.shape[0])
        if taken is not None:
            logits = logits.masked_fill(~taken, torch.finfo(logits.dtype).min)
        shares, counts = positive.to(logits.dtype), rules.counts(positive.sum(), taken)
        forward = _mean_over_positives(logits, shares, dim=1)
        backward = _mean_over_positives(logits, shares, dim=0)
        return LossTerm((forward + backward) / 2, *counts)


def _mean_over_positives(logits: Tensor, positive: Tensor, dim: int) -> Tensor:
    """() mean over rows (`dim` 1) or columns (0) with a positive of the mean -log softmax of their positives."""
    num_positives = positive.sum(dim=dim, keepdim=True)
    num_taken = (num_positives > 0).sum().clamp_min(1)
    shares = positive / (num_positives.clamp_min(1) * num_taken)
    return -(logits.log_softmax(dim=dim) * shares).sum()


def whole_sigmoid(rows: Tensor, candidates: Tensor, rules: PairRules, logit_scale: Tensor, bias: Tensor) -> LossTerm:
    """`sigmoid_loss` with all logits in memory at once."""
    with full_precision(rows):
        logits = at_least_float32(logit_scale) * (at_least_float32(rows) @ at_least_float32(candidates).t())  # (N, M)
        logits = logits + at_least_float32(bias)
        positive, taken = rules.block(0, rules.shape[0])
        losses = -nn.functional.logsigmoid(torch.where(positive, logits, -logits))
        if taken is not None:
            losses = losses.masked_fill(~taken, 0.0)
        return LossTerm(losses.sum() / rules.num_rows().clamp_min(1), *rules.counts(positive.sum(), taken))


@torch.compiler.disable
def blocked_info_nce(
    rows: Tensor, candidates: Tensor, rules: PairRules, logit_scale: Tensor, block_rows: int = BLOCK_ROWS
) -> LossTerm:
    """`info_nce_loss` in blocks of so many rows."""
    inputs = at_least_float32(rows), at_least_float32(candidates), at_least_float32(logit_scale).reshape(())
    found = _BlockedInfoNce.apply(*inputs, rules, block_rows)
    row_losses, column_losses, row_counts, column_counts, num_taken = found
    forward = row_losses.sum() / (row_counts > 0).sum().clamp_min(1)
    backward = column_losses.sum() / (column_counts > 0).sum().clamp_min(1)
    num_positives = row_counts.sum().to(torch.int64)
    return LossTerm((forward + backward) / 2, *rules.counts(num_positives, num_taken))


@torch.compiler.disable
def blocked_sigmoid(
    rows: Tensor,
    candidates: Tensor,
    rules: PairRules,
    logit_scale: Tensor,
    bias: Tensor,
    block_rows: int = BLOCK_ROWS,
) -> LossTerm:
    """`sigmoid_loss` in blocks of so many rows."""
    inputs = at_least_float32(rows), at_least_float32(candidates)
    numbers = at_least_float32(logit_scale).reshape(()), at_least_float32(bias).reshape(())
    total, num_positives, num_taken = _BlockedSigmoid.apply(*inputs, *numbers, rules, block_rows)
    return LossTerm(total / rules.num_rows().clamp_min(1), *rules.counts(num_positives, num_taken))


class _BlockedInfoNce(torch.autograd.Function):
    """Losses of rows (N,) and columns (M,), 0 without a positive; their numbers of positives; () taken pairs."""

    @staticmethod
    def forward(ctx, rows: Tensor, candidates: Tensor, scale: Tensor, rules: PairRules, block_rows: int):
        num_rows, num_columns = len(rows), len(candidates)
        row_log_sum, row_losses, row_counts = rows.new_zeros(3, num_rows)
        column_sum, column_positives, column_counts = rows.new_zeros(3, num_columns)
        column_max = rows.new_full((num_columns,), torch.finfo(rows.dtype).min)
        num_taken = torch.zeros((), dtype=torch.int64, device=rows.device)
        for block, logits, (row, column), num_block_taken in _blocks(rows, candidates, scale, rules, block_rows):
            num_taken += num_block_taken
            found, ones = logits[row, column], torch.ones_like(row, dtype=rows.dtype)
            count = row_counts[block].index_add_(0, row, ones)  # a view: written in place
            column_counts.index_add_(0, column, ones)
            column_positives.index_add_(0, column, found)
            mean = torch.zeros_like(count).index_add_(0, row, found) / count.clamp_min(1)
            row_max = logits.amax(dim=1)
            log_sum = (logits - row_max[:, None]).exp_().sum(dim=1).log_()
            row_losses[block] = torch.where(count > 0, row_max - mean + log_sum, 0.0)
            row_log_sum[block] = row_max + log_sum
            new_max = torch.maximum(column_max, logits.amax(dim=0))
            column_sum.mul_((column_max - new_max).exp_()).add_(logits.sub_(new_max).exp_().sum(dim=0))
            column_max = new_max
        log_sum = column_sum.log_()
        mean = column_positives / column_counts.clamp_min(1)
        column_losses = torch.where(column_counts > 0, column_max - mean + log_sum, 0.0)
        ctx.save_for_backward(rows, candidates, scale, row_log_sum, column_max + log_sum, row_counts, column_counts)
        ctx.rules, ctx.block_rows = rules, block_rows
        ctx.mark_non_differentiable(row_counts, column_counts, num_taken)
        return row_losses, column_losses, row_counts, column_counts, num_taken

    @staticmethod
    @once_differentiable
    def backward(ctx, row_gradient: Tensor, column_gradient: Tensor, *_):
        rows, candidates, scale, row_log_sum, column_log_sum, row_counts, column_counts = ctx.saved_tensors
        row_gradient = torch.where(row_counts > 0, row_gradient, 0.0)
        column_gradient = torch.where(column_counts > 0, column_gradient, 0.0)
        row_share = row_gradient / row_counts.clamp_min(1)
        column_share = column_gradient / column_counts.clamp_min(1)
        gradients = _Gradients(rows, candidates, scale)
        for block, logits, (row, column), _ in _blocks(rows, candidates, scale, ctx.rules, ctx.block_rows):
            towards = (logits - row_log_sum[block, None]).exp_().mul_(row_gradient[block, None])
            towards.addcmul_(logits.sub_(column_log_sum).exp_(), column_gradient)
            towards[row, column] -= row_share[block][row] + column_share[column]
            gradients.add(block, towards)
        return *gradients.of_inputs(), None, None


class _BlockedSigmoid(torch.autograd.Function):
    """() sum of the losses of all taken pairs, () numbers of positive and of taken pairs."""

    @staticmethod
    def forward(ctx, rows: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor, rules: PairRules, block_rows: int):
        total = rows.new_zeros(())
        num_positives, num_taken = torch.zeros(2, dtype=torch.int64, device=rows.device)
        for _, logits, pairs, num_block_taken in _blocks(rows, candidates, scale, rules, block_rows):
            num_taken += num_block_taken
            num_positives += len(pairs[0])
            logits.add_(bias)
            logits[pairs] = -logits[pairs]
            total += nn.functional.softplus(logits, threshold=SOFTPLUS_THRESHOLD).sum()
        ctx.save_for_backward(rows, candidates, scale, bias)
        ctx.rules, ctx.block_rows = rules, block_rows
        ctx.mark_non_differentiable(num_positives, num_taken)
        return total, num_positives, num_taken

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        rows, candidates, scale, bias = ctx.saved_tensors
        gradients, towards_bias = _Gradients(rows, candidates, scale), torch.zeros_like(bias)
        for block, logits, pairs, _ in _blocks(rows, candidates, scale, ctx.rules, ctx.block_rows):
            logits.add_(bias)
            logits[pairs] = -logits[pairs]
            towards = logits.sigmoid_().mul_(gradient)
            towards[pairs] = -towards[pairs]
            towards_bias += towards.sum()
            gradients.add(block, towards)
        return *gradients.of_inputs(), towards_bias, None, None


def _blocks(
    rows: Tensor, candidates: Tensor, scale: Tensor, rules: PairRules, block_rows: int
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor], Tensor | int]]:
    """Block by block: its rows, logits (b, M), rows and columns of its positive pairs, number of its taken pairs.

    The logits of pairs that are not taken are the lowest number there is.
    """
    for start in range(0, len(rows), block_rows):
        block = slice(start, min(start + block_rows, len(rows)))
        with full_precision(rows):
            logits = (rows[block] * scale) @ candidates.t()
            positive, taken = rules.block(block.start, block.stop)
        if taken is not None:
            logits.masked_fill_(~taken, torch.finfo(logits.dtype).min)
        yield block, logits, positive.nonzero(as_tuple=True), logits.numel() if taken is None else taken.count_nonzero()


class _Gradients:
    """The gradients of rows, candidates and scale, from those of the logits block by block."""

    def __init__(self, rows: Tensor, candidates: Tensor, scale: Tensor):
        self.inputs = rows, candidates, scale
        self.of_rows, self.of_candidates = torch.empty_like(rows), torch.zeros_like(candidates)

    def add(self, block: slice, of_logits: Tensor) -> None:
        """Nothing; takes in the gradient (b, M) of a block's logits."""
        rows, candidates, _ = self.inputs
        torch.mm(of_logits, candidates, out=self.of_rows[block])  # autocast leaves products into a given place alone
        self.of_candidates.addmm_(of_logits.t(), rows[block])

    def of_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D), (M, D) and () gradients of rows, candidates and scale."""
        rows, _, scale = self.inputs
        of_scale = torch.dot(rows.flatten(), self.of_rows.flatten())
        return self.of_rows.mul_(scale), self.of_candidates.mul_(scale), of_scale


def full_precision(values: Tensor) -> AbstractContextManager:
    """A block in which autocast lowers nothing on the device of `values`."""
    return torch.autocast(values.device.type, enabled=False)
