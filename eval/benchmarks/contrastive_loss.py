"""What a contrastive loss costs, forward and backward, in time and in peak memory, against peer forms in the same run.

`python -m regionmed_clip.eval.benchmarks.contrastive_loss [--memory-sizes 16384] [--time-sizes 4096] [--rounds 3]
[--width 512] [--output FILE]`

Forms: `blocked` is what large batches take and `whole` what small ones take; "and facts" masks pairs by what the texts
state. The peer, `clip loss`, is CLIP's loss as it is usually written: the product of images and texts once for every
direction, and a cross-entropy of each. One thread, float32. Time is processor time, the median ratio of interleaved
rounds. Memory is the peak of a process of its own, less that of one which merely holds the embeddings and their
gradients. Lower is better.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from modeling_regionmed_clip.contrastive_losses import blocked_info_nce, blocked_sigmoid, whole_info_nce, whole_sigmoid
from modeling_regionmed_clip.contrastive_pairs import PairRules
from regionmed_clip.eval.benchmarks.measure import measure_module, median_ratio, write_report

MODULE = "regionmed_clip.eval.benchmarks.contrastive_loss"
PEER, NOTHING = "clip loss", "embeddings alone"
NUM_ATTRIBUTES, NUM_VALUES = 8, 12  # of a statement
NUM_STATEMENTS, STATEMENTS_OF_TEXT = 2000, 4  # a text draws its statements from a common stock
Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Runs the benchmark and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-sizes", type=int, nargs="*", default=[16384])
    parser.add_argument("--time-sizes", type=int, nargs="*", default=[4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=[NOTHING, *FORMS], help="run one form once, as the memory is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        _step(options.only, options.memory_sizes[0], options.width)
        return
    report = {
        "width": options.width,
        "rounds": options.rounds,
        "relative_time": {size: relative_times(size, options.width, options.rounds) for size in options.time_sizes},
        "peak_mb": {size: peak_memories(size, options.width) for size in options.memory_sizes},
    }
    write_report(options.output, report)
    sys.stdout.write(table(report))


def relative_times(size: int, width: int, rounds: int) -> dict[str, float]:
    """Name of a form -> processor time of a forward and backward pass, relative to the peer's."""
    inputs = _embeddings(size, width)
    losses = {name: build(size) for name, build in FORMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in tqdm(range(rounds + 1), desc=f"time at {size}", unit="round"):
        for name, loss in losses.items():
            started_at = time.process_time()
            torch.autograd.grad(loss(*inputs), inputs)
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started_at)
    return {name: round(median_ratio(taken, seconds[PEER]), 3) for name, taken in seconds.items() if name != PEER}


def peak_memories(size: int, width: int) -> dict[str, float]:
    """Name of a form -> peak in MB (10^6 bytes) above that of the embeddings and their gradients."""
    settings = ["--memory-sizes", str(size), "--width", str(width), "--only"]
    peaks = {
        name: measure_module(MODULE, [*settings, name]).peak_mb
        for name in tqdm([NOTHING, *FORMS], desc=f"memory at {size}", unit="form")
    }
    return {name: round(peaks[name] - peaks[NOTHING], 1) for name in FORMS}


def table(report: dict[str, Any]) -> str:
    """The report as lines: a form, its relative times, its peaks."""
    times, peaks = report["relative_time"], report["peak_mb"]
    heads = [*(f"time at {size}" for size in times), *(f"MB at {size}" for size in peaks)]
    lines = ["".join(f"{text:>24}" for text in ["form", *heads])]
    for name in FORMS:
        values = [column.get(name, 1.0) for column in times.values()] + [column[name] for column in peaks.values()]
        lines.append("".join(f"{text:>24}" for text in [name, *values]))
    return "\n".join(lines) + "\n"


def _embeddings(size: int, width: int) -> Sequence[Tensor]:
    """Rows and candidates (size, width) float32, of unit length, that want a gradient."""
    generator = torch.Generator().manual_seed(0)
    return [
        normalize(torch.randn(size, width, generator=generator), dim=-1).requires_grad_() for _ in ("rows", "texts")
    ]


def _step(form: str, size: int, width: int) -> None:
    """Nothing; one forward and backward pass whose gradients are kept."""
    inputs = _embeddings(size, width)
    if form == NOTHING:
        for value in inputs:
            value.grad = torch.ones_like(value)
        time.sleep(0.5)  # to be seen
        return
    FORMS[form](size)(*inputs).backward()


def _clip_loss(size: int) -> Loss:
    labels, scale = torch.arange(size), torch.tensor(20.0, requires_grad=True)

    def loss(images: Tensor, texts: Tensor) -> Tensor:
        directions = (images, texts), (texts, images)
        return sum(cross_entropy(scale * rows @ others.t(), labels) for rows, others in directions) / 2

    return loss


def _form(function: Callable[..., Any], *, has_facts: bool = False, has_bias: bool = False) -> Callable[[int], Loss]:
    """A builder of one of our forms for a size; rules are made anew in every step, as in training."""

    def build(size: int) -> Loss:
        keys = torch.arange(size)
        numbers = [torch.tensor([value], requires_grad=True) for value in (20.0, -10.0)[: 1 + has_bias]]
        said = {}
        if has_facts:
            generator = torch.Generator().manual_seed(1)
            stock = torch.randint(1, NUM_VALUES, (NUM_STATEMENTS, NUM_ATTRIBUTES), generator=generator)
            stock *= torch.randint(0, 2, stock.shape, generator=generator)  # half is left unsaid
            facts = stock[torch.randint(0, NUM_STATEMENTS, (size, STATEMENTS_OF_TEXT), generator=generator)]
            said = {"row_facts": facts[:, None], "candidate_facts": facts}

        def loss(rows: Tensor, texts: Tensor) -> Tensor:
            return function(rows, texts, PairRules(keys[:, None], keys, **said), *numbers).loss

        return loss

    return build


FORMS: dict[str, Callable[[int], Loss]] = {
    PEER: _clip_loss,
    "whole": _form(whole_info_nce),
    "blocked": _form(blocked_info_nce),
    "blocked and facts": _form(blocked_info_nce, has_facts=True),
    "whole sigmoid": _form(whole_sigmoid, has_bias=True),
    "blocked sigmoid": _form(blocked_sigmoid, has_bias=True),
}


if __name__ == "__main__":
    main()
