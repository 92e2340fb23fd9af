"""Pairs and contrastive losses by plain loops in float64: what the fast code is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from modeling_regionmed_clip.contrastive_pairs import PairRules

POSITIVE, NEGATIVE, MASKED, ABSENT = 1, -1, 0, None


def says_less(first: list[list[int]], second: list[list[int]]) -> bool:
    """Whether every statement of the first text agrees with one of the second, in all attributes that it says."""
    statements = [statement for statement in first if any(statement)]
    return bool(statements) and all(
        any(all(x in (0, y) for x, y in zip(statement, other)) for other in second if any(other))
        for statement in statements
    )


def relations(rules: PairRules) -> list[list[int | None]]:
    """Of every row and candidate: whether they are positive, negative, masked or not there at all."""
    num_rows, num_candidates = rules.shape
    lists = {name: None if value is None or isinstance(value, float) else value.tolist()
             for name, value in vars(rules).items() if not name.startswith("_")}  # fmt: skip
    found = [[_relation(lists, i, j) for j in range(num_candidates)] for i in range(num_rows)]
    if rules.least_similarity is None:
        return found
    cosines = (rules.candidate_embeds @ rules.candidate_embeds.T).tolist()
    for i, line in enumerate(found):
        own = [j for j, value in enumerate(line) if value == POSITIVE]
        named = () if lists["row_negative_keys"] is None else lists["row_negative_keys"][i]
        for j, value in enumerate(line):
            is_similar = any(cosines[j][other] > rules.least_similarity for other in own)
            if value == NEGATIVE and is_similar and lists["candidate_keys"][j] not in named:
                line[j] = MASKED
    return found


def _relation(rules: dict[str, list | None], i: int, j: int) -> int | None:
    """Of row i and candidate j, likeness aside."""
    if rules["row_mask"] is not None and not rules["row_mask"][i]:
        return ABSENT
    if rules["candidate_mask"] is not None and not rules["candidate_mask"][j]:
        return ABSENT
    key = rules["candidate_keys"][j]
    if key in rules["row_keys"][i] and key != -1:
        return POSITIVE
    if rules["row_negative_keys"] is not None:
        if key in rules["row_negative_keys"][i] and key != -1:
            return NEGATIVE
        if not rules["candidate_is_stated"][j]:
            return MASKED
    if rules["row_facts"] is not None:
        candidate = rules["candidate_facts"][j]
        if any(says_less(text, candidate) or says_less(candidate, text) for text in rules["row_facts"][i]):
            return MASKED
    return NEGATIVE


def info_nce_by_loops(rows: Tensor, candidates: Tensor, found: list[list[int | None]], scale: Tensor) -> Tensor:
    logits = {
        (i, j): scale.squeeze() * (rows[i] * candidates[j]).sum()
        for i, line in enumerate(found)
        for j, value in enumerate(line)
        if value in (POSITIVE, NEGATIVE)
    }
    total = rows.sum() * 0 + candidates.sum() * 0 + scale.sum() * 0
    for axis in (0, 1):
        losses = []
        for index in range(len(found) if axis == 0 else len(found[0])):
            line = {pair: value for pair, value in logits.items() if pair[axis] == index}
            positives = [value for (i, j), value in line.items() if found[i][j] == POSITIVE]
            if positives:
                log_sum = torch.logsumexp(torch.stack(list(line.values())), dim=0)
                losses.append(sum(log_sum - value for value in positives) / len(positives))
        if losses:
            total = total + sum(losses) / len(losses) / 2
    return total


def sigmoid_by_loops(
    rows: Tensor, candidates: Tensor, found: list[list[int | None]], scale: Tensor, bias: Tensor
) -> Tensor:
    total = rows.sum() * 0 + candidates.sum() * 0 + (scale + bias).sum() * 0
    for i, line in enumerate(found):
        for j, sign in enumerate(line):
            if sign in (POSITIVE, NEGATIVE):
                logit = scale.squeeze() * (rows[i] * candidates[j]).sum() + bias.squeeze()
                total = total + torch.log1p(torch.exp(-sign * logit))
    num_rows = sum(any(value is not ABSENT for value in line) for line in found)
    return total / max(1, num_rows)


@dataclass
class Case:
    """Random rows and candidates with their rules; embeddings (N, D), (M, D) float64 of unit length."""

    rows: Tensor
    candidates: Tensor
    rules: PairRules
    scale: Tensor
    bias: Tensor


def random_case(
    seed: int,
    num_rows: int = 7,
    num_candidates: int = 9,
    *,
    masks: bool = True,
    facts: bool = True,
    negatives: bool = True,
    filtered: bool = True,
) -> Case:
    """Few keys, attributes and values, so that every relation of two texts occurs."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def unit(num: int) -> Tensor:
        return normalize(torch.randn(num, 4, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()

    rows, candidates = unit(num_rows), unit(num_candidates)
    rules = PairRules(integers(-1, 8, num_rows, 2), integers(0, 12, num_candidates))
    if masks:
        rules.row_mask, rules.candidate_mask = integers(0, 5, num_rows) > 0, integers(0, 5, num_candidates) > 0
    if facts:
        said = {"row_facts": integers(0, 3, num_rows, 2, 2, 3), "candidate_facts": integers(0, 3, num_candidates, 3, 3)}
        keep = (integers(0, 2, num_rows, 2, 2, 1), integers(0, 2, num_candidates, 3, 1))  # few statements a text
        rules = replace(rules, **{name: value * kept for (name, value), kept in zip(said.items(), keep)})
    if negatives:
        rules.row_negative_keys = integers(-1, 12, num_rows, 2)
        rules.candidate_is_stated = torch.isin(rules.candidate_keys, rules.row_keys)
    if filtered:
        rules = replace(rules, least_similarity=0.4, candidate_embeds=candidates.detach())
    scale, bias = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (6.0, -2.0))
    return Case(rows, candidates, rules, scale, bias)
