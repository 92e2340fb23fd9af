"""`torch.onnx.export` of the three paths: one graph for any number of images, regions, texts and tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model
from torch import Tensor, nn

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

TOLERANCE = 1e-4  # float32, another runtime
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
CLIP_TEXT = {"model_type": "clip_text_model", "vocab_size": VOCAB_SIZE, "eos_token_id": 4, "bos_token_id": 3,
             "pad_token_id": 1, **SIZES}  # fmt: skip
IMAGES, TEXTS = {0: "images"}, {0: "texts", 1: "tokens"}
REGIONS = {0: "images", 1: "regions"}


class ImagePath(nn.Module):
    dynamic_shapes = {"pixel_values": IMAGES}

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return (self.model.get_image_features(pixel_values).pooler_output,)


class TextPath(ImagePath):
    dynamic_shapes = {"input_ids": TEXTS, "attention_mask": TEXTS}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return (self.model.get_text_features(input_ids, attention_mask).pooler_output,)


class RegionPath(ImagePath):
    dynamic_shapes = {"pixel_values": IMAGES, "region_boxes": REGIONS, "region_mask": REGIONS}

    def forward(self, pixel_values: Tensor, region_boxes: Tensor, region_mask: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values=pixel_values, region_boxes=region_boxes, region_mask=region_mask)
        return output.region_embeds, output.fused_image_embeds, output.proposal_boxes


def inputs_of(names: list[str], images: int, regions: int, tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(images)
    corners = torch.rand(images, regions, 2, generator=generator) * 0.5
    input_ids = torch.randint(5, VOCAB_SIZE, (images, tokens), generator=generator)
    input_ids[:, -2] = 4  # the end of the text
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -1] = 0
    tensors = {
        "pixel_values": torch.randn(images, 3, 48, 48, generator=generator),
        "region_boxes": torch.cat([corners, corners + 0.1 + 0.4 * corners.flip(-1)], dim=-1),
        "region_mask": torch.rand(images, regions, generator=generator) > 0.3,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
    }
    return tuple(tensors[name] for name in names)


@pytest.mark.filterwarnings("ignore")  # the exporter's own, of torch and onnxscript
@pytest.mark.parametrize(
    ("path", "changes"),
    [(ImagePath, {}), (TextPath, {}), (TextPath, {"text_config": CLIP_TEXT}), (RegionPath, {})],
    ids=["image", "bert text", "clip text", "region"],
)
def test_an_exported_path_answers_as_the_model_for_other_sizes(path, changes, tmp_path: Path):
    model = tiny_model(**changes)
    nn.init.constant_(model.region_fusion.alpha, 0.5)
    module, names = path(model).eval(), list(path.dynamic_shapes)
    with torch.no_grad():
        program = torch.onnx.export(
            module, inputs_of(names, 2, 3, 7), input_names=names, dynamo=True, verbose=False,
            dynamic_shapes=path.dynamic_shapes,
        )  # fmt: skip
    program.save(tmp_path / "path.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "path.onnx", providers=["CPUExecutionProvider"])
    for images, regions, tokens in ((2, 3, 7), (5, 1, 12), (1, 4, 3)):
        values = inputs_of(names, images, regions, tokens)
        with torch.no_grad():
            expected = module(*values)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, values)})
        for value, wanted in zip(found, expected, strict=True):
            assert np.abs(value - wanted.numpy()).max() <= TOLERANCE
