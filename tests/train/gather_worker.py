"""One rank of `test_gather.py`: a batch with ragged regions and repeated texts; prints loss and gradients as JSON."""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from modeling_regionmed_clip.loss_regionmed_clip import (
    DISTILLATION_INPUTS,
    PROPOSAL_INPUTS,
    contrastive_terms,
    proposal_loss,
    region_distillation_loss,
)
from modeling_regionmed_clip.region_pooling import patch_boxes
from regionmed_clip.train.gather import gather_loss_inputs, text_fingerprints

CAPTION_OF_IMAGE = [0, 1, 1, 2]  # rows of the texts below
TEXTS_OF_IMAGE = [[3, 4], [4], [], [3, 5, 4]]  # one region each
TOKENS = torch.tensor(
    [[2, 7, 3, 0], [2, 8, 3, 0], [2, 9, 9, 3], [2, 10, 3, 0], [2, 11, 3, 0], [2, 12, 7, 3], [2, 6, 3, 0]]
)
PLACEHOLDER = 6  # the row that fills up the texts of every rank and must count nowhere
BOXES_OF_IMAGE = [  # as many as texts; ranks differ in the most regions of an image
    [[0.0, 0.0, 0.4, 0.5], [0.2, 0.1, 0.9, 0.8]],
    [[0.5, 0.5, 0.7, 1.0]],
    [],
    [[0.1, 0.6, 0.3, 0.9], [0.6, 0.0, 1.0, 0.4], [0.0, 0.0, 1.0, 1.0]],
]
TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")


def local_batch(images: list[int], encoders: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """This rank's rows, each of its texts once, in the order of first appearance."""
    captions = [*dict.fromkeys(CAPTION_OF_IMAGE[i] for i in images), PLACEHOLDER]
    texts = [*dict.fromkeys(text for i in images for text in TEXTS_OF_IMAGE[i]), PLACEHOLDER]
    generator = torch.Generator().manual_seed(0)
    pixels, patches = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (4, 6))
    first_region = [0, 2, 3, 3]
    region_rows = [first_region[i] + j for i in images for j in range(len(TEXTS_OF_IMAGE[i]))]
    tokens = torch.nn.functional.one_hot(TOKENS, 13).double().sum(dim=1)  # (texts, 13) bag of words
    image = normalize(pixels[images] @ encoders["image"], dim=-1)
    keys = [100 + text for i in images for text in TEXTS_OF_IMAGE[i]]
    local = {
        "image": image,
        "image_keys": torch.tensor([100 + CAPTION_OF_IMAGE[i] for i in images]),
        "fused_image": image,
        "text": normalize(tokens[captions] @ encoders["text"], dim=-1),
        "text_keys": torch.tensor([*[100 + row for row in captions[:-1]], -1]),
        "text_mask": torch.tensor([*[True] * (len(captions) - 1), False]),
        "region": normalize(patches[region_rows] @ encoders["image"], dim=-1),
        "region_keys": torch.tensor(keys, dtype=torch.int64),
        "region_row_mask": torch.ones(len(keys), dtype=torch.bool),
        "image_region_keys": pad_sequence(
            [torch.tensor([100 + text for text in TEXTS_OF_IMAGE[i]], dtype=torch.int64) for i in images],
            batch_first=True,
            padding_value=-1,
        ),
        "region_text": normalize(tokens[texts] @ encoders["text"], dim=-1),
        "region_text_keys": torch.tensor([*[100 + row for row in texts[:-1]], -1]),
        "region_text_mask": torch.tensor([*[True] * (len(texts) - 1), False]),
        "student": (pixels[images] @ encoders["image"])[:, None] * torch.tensor([1.0, -2.0])[:, None],  # (B, 2, 6)
        "teacher": torch.randn(4, 2, 6, generator=generator, dtype=torch.float64)[images],
        "distilled_mask": torch.tensor([[True, True], [False, True], [False, False], [True, True]])[images],
    }
    local |= proposal_rows(images, pixels[images] @ encoders["image"])
    ids = {"text": TOKENS[captions], "region_text": TOKENS[texts]}
    return local, {name: text_fingerprints(rows, (rows > 0).long()) for name, rows in ids.items()}


def proposal_rows(images: list[int], states: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `proposal_loss` takes, on a grid of 2 x 3 patches; states (B, 6)."""
    patches = patch_boxes((2, 3), states.device)
    reach = 0.3 * torch.sigmoid(states)[..., None] * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    targets = [torch.tensor(BOXES_OF_IMAGE[i]).reshape(-1, 4) for i in images]
    real = [torch.ones(len(rows), dtype=torch.bool) for rows in targets]
    return {
        "proposal_logits": states,
        "proposal_boxes": (patches + reach).clamp(0.0, 1.0),
        "target_boxes": pad_sequence(targets, batch_first=True),
        "target_mask": pad_sequence(real, batch_first=True),
        "patch_boxes": patches,
        "is_complete": torch.tensor([i % 2 == 0 for i in images]),
    }


def main(rank: int, num_processes: int) -> None:
    if num_processes > 1:
        dist.init_process_group("gloo", rank=rank, world_size=num_processes)
    generator = torch.Generator().manual_seed(1)
    shapes = {"image": (5, 6), "text": (13, 6)}
    encoders = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for encoder in encoders.values():
        encoder.requires_grad_()
    share = 4 // num_processes
    local, fingerprints = local_batch(list(range(rank * share, (rank + 1) * share)), encoders)
    gathered = gather_loss_inputs(local, fingerprints)
    terms = contrastive_terms(gathered, {name: torch.full((1,), 5.0) for name in TERMS}, TERMS)
    terms["region_distillation"] = region_distillation_loss(*(gathered[name] for name in DISTILLATION_INPUTS))
    terms["proposals"] = proposal_loss(*(gathered[name] for name in PROPOSAL_INPUTS))
    torch.stack([term.loss for term in terms.values()]).sum().backward()
    gradients = {name: encoder.grad for name, encoder in encoders.items()}
    if num_processes > 1:
        for gradient in gradients.values():  # what DDP does
            dist.all_reduce(gradient)
            gradient /= num_processes
    if rank == 0:
        losses = {
            name: [term.loss.item(), int(term.num_positives), int(term.num_negatives)] for name, term in terms.items()
        }
        sys.stdout.write(json.dumps({"losses": losses, **{name: grad.tolist() for name, grad in gradients.items()}}))
        sys.stdout.flush()
    os._exit(0)  # gloo's threads abort at random in a normal exit


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
