"""The model compiles to one graph with fixed shapes, and nowhere waits for a value of a tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from modeling_regionmed_clip import RegionMedClipModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL_IDS = {"vocab_size": VOCAB_SIZE, "eos_token_id": 4, "bos_token_id": 3, "pad_token_id": 1}
MODELS = {
    "prompter": {},
    "roialign": {"roi_mode": "roialign"},
    "siglip": {
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 48, "patch_size": 12, **SIZES},
        "text_config": {"model_type": "siglip_text_model", "max_position_embeddings": 8, **SIZES, **SPECIAL_IDS},
        "logit_bias_init_value": -10.0,
    },
    "clip text": {"text_config": {"model_type": "clip_text_model", **SIZES, **SPECIAL_IDS}},
}
PATHS: dict[str, Callable] = {
    "image": lambda model, batch: model.get_image_features(batch["pixel_values"]),
    "text": lambda model, batch: model.get_text_features(batch["input_ids"], batch["attention_mask"]),
    "region": lambda model, batch: model.get_region_features(batch["pixel_values"], batch["region_boxes"]),
    "dense": lambda model, batch: model.get_dense_features(batch["pixel_values"]),
    "proposed": lambda model, batch: model.get_image_features(batch["pixel_values"], regions="proposed"),
    "ground": lambda model, batch: model.ground_phrases(batch["pixel_values"], batch["input_ids"]),
    "loss": lambda model, batch: model(**batch, return_loss=True),
}


def built(changes: dict) -> RegionMedClipModel:
    model = tiny_model(**changes)
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    return model


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_no_path_waits_for_the_value_of_a_tensor(changes):
    """A fake tensor has a shape and no values: `.item()`, `.tolist()`, `if tensor` and boolean indexing raise."""
    model = built(changes).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        batch = {name: mode.from_tensor(value) for name, value in tiny_batch().items()}
        outputs = [path(model, batch) for path in PATHS.values()]
    for output in outputs:  # each path went through on shapes alone
        values = [output] if isinstance(output, torch.Tensor) else output.values()
        found = [value for value in values if isinstance(value, torch.Tensor)]
        assert found
        assert all(isinstance(value, FakeTensor) for value in found)


@pytest.mark.parametrize("name", ["image", "text", "region", "proposed"])
def test_a_path_compiles_to_one_graph(name):
    model, batch = built({}), tiny_batch()
    torch.compiler.reset()
    compiled = torch.compile(PATHS[name], fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        found, expected = compiled(model, batch), PATHS[name](model, batch)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_a_training_step_compiles_to_one_graph_once():
    graphs = []

    def count(graph: torch.fx.GraphModule, _) -> Callable:
        graphs.append(graph)
        return graph.forward

    model = built({}).train()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=count, dynamic=False)
    for seed in (0, 1):
        batch = tiny_batch(seed)
        found, expected = compiled(**batch, return_loss=True), model(**batch, return_loss=True)
        torch.testing.assert_close(found.loss, expected.loss, atol=1e-6, rtol=1e-6)  # float32
        assert found.loss_terms.keys() == expected.loss_terms.keys()
        found.loss.backward()
    assert len(graphs) == 1
    assert model.proposal_head.score.weight.grad.abs().max() > 0
