"""Tiny random checkpoints of others as folders: CLIP, SigLIP and dual encoders of transformers, open_clip's formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

VOCAB_SIZE, LENGTH, END = 60, 12, 59
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": VOCAB_SIZE, "max_position_embeddings": LENGTH}  # fmt: skip
CLIP_IDS = {"bos_token_id": 58, "eos_token_id": END, "pad_token_id": END}


def roughened(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """The model with noise on every weight, so that no bias is 0 and no norm is the identity by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_clip(**text_changes) -> CLIPModel:
    torch.manual_seed(0)
    text = {**TEXT, **CLIP_IDS, **text_changes}
    return roughened(CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=16)))


def tiny_siglip() -> SiglipModel:
    torch.manual_seed(0)
    model = roughened(SiglipModel(SiglipConfig(vision_config=VISION, text_config={**TEXT, "projection_size": 32})))
    with torch.no_grad():
        model.logit_scale.fill_(4.72)  # SigLIP's are about that: an inverse temperature of 112
        model.logit_bias.fill_(-12.3)
    return model


def tiny_dual_encoder(vision: str, text: str) -> VisionTextDualEncoderModel:
    torch.manual_seed(0)
    vision_model = {
        "vit": lambda: ViTModel(ViTConfig(**VISION)),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION)),
    }[vision]()
    text_model = {
        "bert": lambda: BertModel(BertConfig(**TEXT)),
        "clip text": lambda: CLIPTextModel(CLIPTextConfig(**TEXT, **CLIP_IDS)),
        "roberta": lambda: RobertaModel(RobertaConfig(**{**TEXT, "max_position_embeddings": LENGTH + 2})),
    }[text]()
    return roughened(VisionTextDualEncoderModel(vision_model=vision_model, text_model=text_model))


WHOLE_MODELS = {
    "clip": tiny_clip,
    "clip with the old end id": lambda: tiny_clip(bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "siglip": tiny_siglip,
    "vit and bert": lambda: tiny_dual_encoder("vit", "bert"),
    "clip and roberta": lambda: tiny_dual_encoder("clip", "roberta"),
    "siglip vision and clip text": lambda: tiny_dual_encoder("siglip", "clip text"),
    "dinov2 and bert": lambda: tiny_dual_encoder("dinov2", "bert"),
}


def tiny_inputs(image_size: int = 32) -> dict[str, Tensor]:
    """Three images and four texts at full length, one of them padded (id 1) after its end."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, 50, (4, LENGTH), generator=generator)
    input_ids[:, -1] = END
    input_ids[1, 6], input_ids[1, 7:] = END, 1
    return {"pixel_values": torch.randn(3, 3, image_size, image_size, generator=generator), "input_ids": input_ids}


def tiny_tokenizer(max_length: int = LENGTH, **settings) -> PreTrainedTokenizerFast:
    """A word tokenizer with "</s>" (id 1, also padding) after every text."""
    words = ["<pad>", "</s>", "<unk>", *"a small large opacity nodule in the left right lung no finding".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fields = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "padding_side": "right", **settings}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **fields)


# ---- open_clip


def normal(generator: torch.Generator, *shape: int, around: float = 0.0) -> Tensor:
    return around + 0.2 * torch.randn(*shape, generator=generator)


def timm_vit_tensors(generator: torch.Generator, width: int, num_layers: int, side: int, grid: int, dim: int) -> dict:
    """`visual.*` of open_clip with a timm Vision Transformer."""
    trunk = {
        "cls_token": normal(generator, 1, 1, width),
        "pos_embed": normal(generator, 1, grid * grid + 1, width),
        "patch_embed.proj.weight": normal(generator, width, 3, side, side),
        "patch_embed.proj.bias": normal(generator, width),
        "norm.weight": normal(generator, width, around=1.0),
        "norm.bias": normal(generator, width),
    }
    for i in range(num_layers):
        for name, shape in (("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)),
                            ("mlp.fc1", (2 * width, width)), ("mlp.fc2", (width, 2 * width))):  # fmt: skip
            trunk[f"blocks.{i}.{name}.weight"] = normal(generator, *shape)
            trunk[f"blocks.{i}.{name}.bias"] = normal(generator, shape[0])
        for name in ("norm1", "norm2"):
            trunk[f"blocks.{i}.{name}.weight"] = normal(generator, width, around=1.0)
            trunk[f"blocks.{i}.{name}.bias"] = normal(generator, width)
    head = {"visual.head.proj.weight": normal(generator, dim, width)}
    return {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()} | head


def biomedclip_tensors(dim: int = 16) -> dict[str, Tensor]:
    """BiomedCLIP's layout: a ViT of 12 heads with 4 channels each, a BERT of width 64, a projection of two layers."""
    generator = torch.Generator().manual_seed(0)
    tensors = timm_vit_tensors(generator, width=48, num_layers=2, side=16, grid=2, dim=dim)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
                        vocab_size=VOCAB_SIZE, max_position_embeddings=LENGTH)  # fmt: skip
    bert = roughened(BertModel(config, add_pooling_layer=False))
    tensors |= {f"text.transformer.{name}": tensor.detach().clone() for name, tensor in bert.state_dict().items()}
    tensors["text.transformer.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    hidden = (64 + dim) // 2
    tensors["text.proj.0.weight"] = normal(generator, hidden, 64)
    tensors["text.proj.2.weight"] = normal(generator, dim, hidden)
    return tensors | {"logit_scale": torch.tensor(3.0)}


BIOMEDCLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": "",
                       "timm_proj": "linear", "image_size": 32},
        "text_cfg": {"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                     "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                     "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 10},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}  # fmt: skip


def resblock_tensors(generator: torch.Generator, prefix: str, width: int, num_layers: int) -> dict[str, Tensor]:
    tensors = {}
    for i in range(num_layers):
        for name, shape in (("attn.in_proj_weight", (3 * width, width)), ("attn.in_proj_bias", (3 * width,)),
                            ("attn.out_proj.weight", (width, width)), ("attn.out_proj.bias", (width,)),
                            ("mlp.c_fc.weight", (2 * width, width)), ("mlp.c_fc.bias", (2 * width,)),
                            ("mlp.c_proj.weight", (width, 2 * width)), ("mlp.c_proj.bias", (width,)),
                            ("ln_1.bias", (width,)), ("ln_2.bias", (width,))):  # fmt: skip
            tensors[f"{prefix}.{i}.{name}"] = normal(generator, *shape)
        for name in ("ln_1.weight", "ln_2.weight"):
            tensors[f"{prefix}.{i}.{name}"] = normal(generator, width, around=1.0)
    return tensors


def native_tensors(text_prefix: str = "", dim: int = 16) -> dict[str, Tensor]:
    """open_clip's own transformers: vision of width 32, text of width 24 (under "text." in its newer models)."""
    generator = torch.Generator().manual_seed(0)
    vision = {
        "visual.class_embedding": normal(generator, 32),
        "visual.positional_embedding": normal(generator, 17, 32),
        "visual.conv1.weight": normal(generator, 32, 3, 8, 8),
        "visual.proj": normal(generator, 32, dim),
        **resblock_tensors(generator, "visual.transformer.resblocks", 32, 2),
    }
    text = {
        "token_embedding.weight": normal(generator, VOCAB_SIZE, 24),
        "positional_embedding": normal(generator, LENGTH, 24),
        "text_projection": normal(generator, 24, dim),
        "attn_mask": torch.full((LENGTH, LENGTH), -torch.inf).triu(1),
        **resblock_tensors(generator, "transformer.resblocks", 24, 2),
    }
    for part, name, width in ((vision, "visual.ln_pre", 32), (vision, "visual.ln_post", 32), (text, "ln_final", 24)):
        part[f"{name}.weight"], part[f"{name}.bias"] = normal(generator, width, around=1.0), normal(generator, width)
    text = {text_prefix + name: tensor for name, tensor in text.items()}
    return vision | text | {"logit_scale": torch.tensor(4.0)}


NATIVE_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2},
        "text_cfg": {"context_length": LENGTH, "vocab_size": VOCAB_SIZE, "width": 24, "heads": 3, "layers": 2,
                     "mlp_ratio": 2},
    },
    "preprocess_cfg": {},
}  # fmt: skip


def save_open_clip(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    """The folder, written as open_clip does; the weights as its `.bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    return folder
