"""Which pairs of rows and candidate texts are positive, which negative and which neither, by what the texts state.

Keys: a text's key stands for everything it states. A row (an image, a region) has one own text or several; a candidate
with the key of one of them is positive.
Statements: what a text states, as numbers (facts): F named attributes a statement, 0 = unsaid. One text says less than
another if each of its statements agrees with some statement of the other in all attributes that it says. Then the two
may be true of the same row, and the pair is masked: neither positive nor negative.

Letters: N rows, M candidates, K own texts of a row, S statements of a text, F attributes, V unique statements of all
texts, W values that attributes have in them, H hard negatives of a row, D width of the shared space, b rows of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NO_TEXT_KEY = -1  # keys of real texts are 63-bit hashes, hence never negative
_NO_OWN_TEXT = -2  # equal to no candidate's key, not even to that of a placeholder
_HASH_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # the 64-bit golden ratio, as a signed integer
_LARGEST_WORK = 1 << 24  # entries of the largest intermediate table of a block
_SIMILARITY_CHUNK = 512  # own texts compared with all candidates at once


def first_occurrence_mask(fingerprints: Tensor, mask: Tensor | None = None) -> Tensor:
    """(M,) bool, True where no earlier (unmasked) row has the same fingerprint: each distinct text counts once.

    Args:
        fingerprints: (M,) int64; equal for equal texts.
        mask: (M,) bool; False rows are never first and never hide a later row.
    """
    if mask is None:
        mask = torch.ones_like(fingerprints, dtype=torch.bool)
    order = torch.argsort((~mask).to(torch.uint8), stable=True)  # unmasked rows first
    order = order[torch.argsort(fingerprints[order], stable=True)]
    ordered = fingerprints[order]
    is_first = torch.ones_like(mask)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return mask & torch.empty_like(mask).scatter_(0, order, is_first)


def values_at(values: Tensor, text_index: Tensor, fill: int) -> Tensor:
    """(B, ...) or (B, R, ...) the row of `values` of every image's or region's text, `fill` where it has none.

    Args:
        values: (T, ...) or (U, ...) int64; one row per text.
        text_index: (B,) or (B, R) int64; rows of the texts, -1 = none.
    """
    found = values[text_index.clamp_min(0)]
    is_none = (text_index < 0).reshape(*text_index.shape, *[1] * (values.ndim - 1))
    return found.masked_fill(is_none, fill)


@dataclass(eq=False)
class PairRules:
    """What decides which pairs of N rows and M candidate texts are positive, negative or masked; block by block.

    A pair is positive if the candidate has one of the row's own keys. Of the others, those are masked in which the
    candidate says less or more than one of the row's own texts, in which it is too similar to one, and in which it is
    a hard negative of other rows alone. A row's own hard negatives are false of it by construction: always negative.

    Args:
        row_keys: (N, K) int64 keys of the row's own texts, -1 = none.
        candidate_keys: (M,) int64.
        row_mask, candidate_mask: (N,), (M,) bool; False takes no part. None: all take part.
        row_facts, candidate_facts: (N, K', S, F), (M, S', F) int64 statements of the row's own texts (K' may differ
            from K) and of the candidates, 0 = unsaid; a text of unknown structure has none. Both or neither.
        row_negative_keys: (N, H) int64 keys of the row's hard negatives, -1 = none. With them, a candidate that is
            nobody's own text (`candidate_is_stated` (M,) bool False) is masked for rows that do not name it.
        least_similarity: cosine above which a candidate is too similar to an own text that is among the candidates.
            None: no such filter.
        candidate_embeds: (M, D) float, unit length; for that filter alone, no gradient flows into it.
    """

    row_keys: Tensor
    candidate_keys: Tensor
    row_mask: Tensor | None = None
    candidate_mask: Tensor | None = None
    row_facts: Tensor | None = None
    candidate_facts: Tensor | None = None
    row_negative_keys: Tensor | None = None
    candidate_is_stated: Tensor | None = None
    least_similarity: float | None = None
    candidate_embeds: Tensor | None = None

    def __post_init__(self):
        said = None if self.row_facts is None else (*self.row_facts.shape[1:3], self.candidate_facts.shape[1])
        self._statements = _Statements(self.row_facts, self.candidate_facts) if said is not None and all(said) else None

    @property
    def shape(self) -> tuple[int, int]:
        """N rows and M candidates."""
        return self.row_keys.shape[0], self.candidate_keys.shape[0]

    def num_rows(self) -> Tensor:
        """() int64 rows that take part."""
        return self.row_keys.new_tensor(len(self.row_keys)) if self.row_mask is None else self.row_mask.sum()

    def counts(self, num_positives: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """() int64 positives, negatives and masked pairs.

        Args:
            num_positives: () int64.
            taken: () int64 pairs that are positive or negative, or a (N, M) bool of them. None: all are.
        """
        num_candidates = len(self.candidate_keys) if self.candidate_mask is None else self.candidate_mask.sum()
        num_pairs = self.num_rows() * num_candidates
        if taken is None:
            taken = num_pairs
        num_taken = taken.count_nonzero() if taken.dtype == torch.bool else taken
        return num_positives, num_taken - num_positives, num_pairs - num_taken

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """(b, M) bool of the rows from start to stop: which pairs are positive, and which positive or negative.

        The second is None where every pair is one or the other.
        """
        work = self.row_keys.shape[1] * self.shape[1]  # entries for a row of the tables below
        if self.row_negative_keys is not None:
            work = max(work, self.row_negative_keys.shape[1] * self.shape[1])
        if self._statements is not None:
            num_texts, num_statements = self.row_facts.shape[1:3]
            work = max(work, num_texts * num_statements * max(self.shape[1], len(self._statements.said)))
        step = max(1, _LARGEST_WORK // max(1, work))
        if stop - start <= step:
            return self._block(slice(start, stop))
        parts = [self._block(slice(first, min(first + step, stop))) for first in range(start, stop, step)]
        positive, taken = zip(*parts)
        return torch.cat(positive), None if taken[0] is None else torch.cat(taken)

    def _block(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        positive = _holds(self.row_keys[rows], self.candidate_keys)  # (b, M)
        valid = self._valid(rows)
        positive = positive if valid is None else positive & valid
        masked = self._masked(rows, positive)
        if masked is None:
            return positive, None if valid is None else valid.expand_as(positive)
        taken = positive | ~masked
        return positive, taken if valid is None else taken & valid

    def _valid(self, rows: slice) -> Tensor | None:
        """(b, M) or broadcastable bool: row and candidate take part; None: all do."""
        if self.row_mask is None:
            return None if self.candidate_mask is None else self.candidate_mask[None, :]
        row_mask = self.row_mask[rows, None]
        return row_mask if self.candidate_mask is None else row_mask & self.candidate_mask[None, :]

    def _masked(self, rows: slice, positive: Tensor) -> Tensor | None:
        """(b, M) bool: a rule says that the pair is no negative; None: there is no such rule."""
        masked = None if self._statements is None else self._is_related(rows)
        if self.least_similarity is not None:
            similar = self._is_similar(positive)
            masked = similar if masked is None else masked | similar
        if self.row_negative_keys is None:
            return masked
        unstated = ~self.candidate_is_stated[None, :]
        masked = unstated if masked is None else masked | unstated
        return masked & ~_holds(self.row_negative_keys[rows], self.candidate_keys)

    def _is_similar(self, positive: Tensor) -> Tensor:
        """(b, M) bool: more similar to one of the row's positive candidates than `least_similarity`."""
        embeds = at_least_float32(self.candidate_embeds.detach())
        columns = torch.arange(len(embeds), device=embeds.device)
        if len(columns) > _SIMILARITY_CHUNK:
            columns = positive.any(dim=0).nonzero().squeeze(1)
        similar = torch.zeros_like(positive)
        for chunk in columns.split(_SIMILARITY_CHUNK):
            near = embeds[chunk] @ embeds.t() > self.least_similarity  # (chunk, M)
            similar |= positive[:, chunk].float() @ near.float() > 0
        return similar

    def _is_related(self, rows: slice) -> Tensor:
        """(b, M) bool: the candidate says less, or more, than one of the row's own texts."""
        said = self._statements
        here, places = torch.unique(said.row_ids[rows], return_inverse=True)  # (V',), (b, K, S)
        num_agreeing = said.said[here] @ said.said.t()  # (V', V) attributes of which both say the same
        agrees = num_agreeing == said.num_said[here, None]  # all that the row's statement says, the other says too
        is_agreed = num_agreeing == said.num_said  # and the other way round
        covered = _over_slots(torch.logical_or, agrees.t().contiguous(), said.candidate_ids)  # (M, V')
        says_less = _over_slots(torch.logical_and, covered.t().contiguous(), places)  # (b, K, M)
        covers = _over_slots(torch.logical_or, is_agreed, places)  # (b, K, V)
        says_more = _over_slots(torch.logical_and, covers.flatten(0, 1).t().contiguous(), said.candidate_ids)
        says_more = (says_more & said.candidate_has_facts[:, None]).unflatten(1, places.shape[:2])  # (M, b, K)
        says_less = says_less & said.row_has_facts[rows, :, None]
        return says_less.any(dim=1) | says_more.any(dim=2).t()


class _Statements:
    """The unique statements of rows and candidates.

    row_ids (N, K, S), candidate_ids (M, S) int64 statements of each text; row_has_facts (N, K), candidate_has_facts
    (M,) bool; said (V, W) float, 1 where a statement says a value of an attribute; num_said (V,) float. The empty
    statement, of which a text may have any number, agrees with all.
    """

    def __init__(self, row_facts: Tensor, candidate_facts: Tensor):
        num_attributes = row_facts.shape[-1]
        facts = torch.cat([row_facts.reshape(-1, num_attributes), candidate_facts.reshape(-1, num_attributes)])
        weights = torch.full((num_attributes,), _HASH_STEP, device=facts.device).cumprod(0)  # wraps
        hashes, ids = torch.unique((facts * weights).sum(dim=1), return_inverse=True)
        unique = facts.new_zeros(len(hashes), num_attributes).index_put((ids,), facts)  # (V, F)
        num_row_ids = row_facts[..., 0].numel()
        self.row_ids = ids[:num_row_ids].view(row_facts.shape[:-1])
        self.candidate_ids = ids[num_row_ids:].view(candidate_facts.shape[:-1])
        self.row_has_facts = (row_facts != 0).flatten(2).any(dim=2)
        self.candidate_has_facts = (candidate_facts != 0).flatten(1).any(dim=1)
        of_attribute = torch.arange(num_attributes, device=facts.device) * _HASH_STEP
        values, codes = torch.unique(unique + of_attribute, return_inverse=True)  # (W,), (V, F)
        is_said = (unique != 0).float()
        self.said = is_said.new_zeros(len(unique), len(values)).scatter_(1, codes, is_said)
        self.num_said = is_said.sum(dim=1)


def _over_slots(combine: Callable[[Tensor, Tensor], Tensor], table: Tensor, ids: Tensor) -> Tensor:
    """(..., C) bool rows of `table` (V, C) at `ids` (..., S), those of a text's S statements combined."""
    found = table[ids[..., 0]]
    for slot in ids.unbind(dim=-1)[1:]:
        found = combine(found, table[slot])
    return found


def _holds(row_keys: Tensor, candidate_keys: Tensor) -> Tensor:
    """(b, M) bool: one of the row's keys (b, K) is the candidate's (M,), a key of a text."""
    row_keys = row_keys.masked_fill(row_keys == NO_TEXT_KEY, _NO_OWN_TEXT)
    if row_keys.shape[1] == 1:
        return row_keys == candidate_keys
    return (row_keys[..., None] == candidate_keys).any(dim=1)


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 where they are: what sums of exponentials need."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
