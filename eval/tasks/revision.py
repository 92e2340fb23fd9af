"""What names a set of weights: a hash of what they are, not of the file they came in."""

from __future__ import annotations

import hashlib
import json

import torch


def weights_revision(model: torch.nn.Module) -> str:
    """First 12 hex digits of the SHA-256 over the names, shapes, types and bytes of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
