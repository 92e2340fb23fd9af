"""open_clip-format folders as starts: `open_clip_config.json` beside `open_clip_model.safetensors` or
`open_clip_pytorch_model.bin`.

Two layouts. BiomedCLIP's: a timm Vision Transformer under `visual.trunk` with `visual.head.proj`, and a BERT of
transformers under `text.transformer` with a projection of one layer or two (`text.proj`). And open_clip's own
transformers (`visual.conv1`, `transformer.resblocks`; with the text tower under `text.` as well).

Sources, for names and rules alone: open_clip 2.x (github.com/mlfoundations/open_clip: model.py, timm_model.py,
hf_model.py, push_to_hf_hub.py); timm's vision_transformer.py; BiomedCLIP's configuration as printed in public code that
builds it (timm_model_name vit_base_patch16_224, timm_pool "", timm_proj linear, hf_proj_type mlp, hf_pooler_type
cls_last_hidden_state_pooler, context_length 256), whose weights still hold the obsolete
`text.transformer.embeddings.position_ids`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, CLIPTextConfig, CLIPVisionConfig, ViTConfig
from transformers.modeling_utils import load_state_dict

from .source_checkpoint import SourceCheckpoint

CONFIG_FILE = "open_clip_config.json"
SAFE_WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILE = "open_clip_pytorch_model.bin"

TIMM_NAME = re.compile(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+(\.\w+)?")
TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
BERT_HEAD_WIDTH = 64  # of every published BERT; the weights do not tell it
BERT_POOLINGS = {"cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean", "cls_pooler": "pooler"}

# What an option may be for the conversion to be right; None: anything, as it is used below or only matters in training.
MODEL_OPTIONS = dict.fromkeys(
    ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
)
TIMM_OPTIONS = {
    **dict.fromkeys(("timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout")),
    **dict.fromkeys(("image_size", "width", "layers", "patch_size", "output_tokens")),  # the weights say their sizes
    "timm_pool": ("", "token"),
    "timm_proj": ("linear",),
    "timm_proj_bias": (False,),
}
BERT_OPTIONS = {
    **dict.fromkeys(("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "tokenizer_kwargs", "output_tokens")),
    **dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers", "pad_id")),
    "hf_proj_type": ("linear", "mlp", None),
    "hf_pooler_type": tuple(BERT_POOLINGS),
}
NATIVE_VISION_OPTIONS = {
    **dict.fromkeys(("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout")),
    "output_tokens": None,
    "pool_type": ("tok",),
    "timm_model_name": (None,),
    "ls_init_value": (None,),
}
NATIVE_TEXT_OPTIONS = {
    **dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id")),
    **dict.fromkeys(("hf_tokenizer_name", "tokenizer_kwargs", "output_tokens")),
    "pool_type": ("argmax",),
    "no_causal_mask": (False,),
    "embed_cls": (False,),
    "proj_bias": (False,),
    "hf_model_name": (None,),
    "ls_init_value": (None,),
}

TIMM_NAMES = [
    (r"visual\.trunk\.cls_token", "vision_model.embeddings.cls_token"),
    (r"visual\.trunk\.pos_embed", "vision_model.embeddings.position_embeddings"),
    (r"visual\.trunk\.patch_embed\.proj\.(.+)", r"vision_model.embeddings.patch_embeddings.projection.\1"),
    (r"visual\.trunk\.blocks\.(\d+)\.norm1\.(.+)", r"vision_model.layers.\1.layernorm_before.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.norm2\.(.+)", r"vision_model.layers.\1.layernorm_after.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision_model.layers.\1.attention.{qkv}_proj.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision_model.layers.\1.attention.o_proj.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"vision_model.layers.\1.mlp.\2.\3"),
    (r"visual\.trunk\.norm\.(.+)", r"vision_model.layernorm.\1"),
    (r"visual\.head\.proj\.weight", "visual_projection.weight"),
]
BERT_NAMES = [
    (r"text\.transformer\.((?!embeddings\.(?:position|token_type)_ids).+)", r"text_model.\1"),
    (r"text\.proj\.((?:[02]\.)?weight)", r"text_projection.\1"),
]
RESBLOCKS = r"transformer\.resblocks\.(\d+)\."
NATIVE_BLOCK_NAMES = [
    (r"ln_([12])\.(.+)", r".encoder.layers.\1.layer_norm\2.\3"),
    (r"attn\.in_proj_(weight|bias)", r".encoder.layers.\1.self_attn.{qkv}_proj.\2"),
    (r"attn\.out_proj\.(.+)", r".encoder.layers.\1.self_attn.out_proj.\2"),
    (r"mlp\.c_fc\.(.+)", r".encoder.layers.\1.mlp.fc1.\2"),
    (r"mlp\.c_proj\.(.+)", r".encoder.layers.\1.mlp.fc2.\2"),
]
NATIVE_NAMES = [
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.ln_pre\.(.+)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(.+)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", "visual_projection.{transposed}weight"),
    (r"(?:text\.)?token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"(?:text\.)?positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"(?:text\.)?ln_final\.(.+)", r"text_model.final_layer_norm.\1"),
    (r"(?:text\.)?text_projection", "text_projection.{transposed}weight"),
    *((rf"visual\.{RESBLOCKS}{end}", f"vision_model{name}") for end, name in NATIVE_BLOCK_NAMES),
    *((rf"(?:text\.)?{RESBLOCKS}{end}", f"text_model{name}") for end, name in NATIVE_BLOCK_NAMES),
]
COUNTS = "a buffer that only counts positions or masks them, made anew here"


def is_open_clip(folder: Path) -> bool:
    """Whether the folder is in open_clip's format."""
    return (folder / CONFIG_FILE).is_file()


def read_open_clip(folder: Path) -> SourceCheckpoint:
    """The checkpoint of an open_clip-format folder.

    Raises:
        ValueError: for an option or a tensor whose meaning is not known here, and for unreadable files.
    """
    path = folder / CONFIG_FILE
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision, text, embed_dim = model["vision_cfg"], model["text_cfg"], model["embed_dim"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not open_clip's: {type(error).__name__} {error}; it must be JSON with model_cfg, in it "
            "embed_dim, vision_cfg and text_cfg."
        ) from error
    _check_options(path, "model_cfg", model, MODEL_OPTIONS)
    tensors = read_tensors(folder)
    is_timm, is_bert = vision.get("timm_model_name") is not None, text.get("hf_model_name") is not None
    read_vision = _timm_vision if is_timm else _native_vision
    read_text = _bert_text if is_bert else _native_text
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    vision_config = read_vision(path, vision, tensors, activation)
    text_config, text_fields = read_text(path, text, tensors, activation)
    fields = {"projection_dim": embed_dim, "image_pooling": "tower", "embedding_norm": "l2", **text_fields}
    fields |= {"visual_projection_type": "linear", "logit_bias_init_value": None}
    if "logit_scale" not in tensors:
        raise ValueError(f"{folder} has no tensor logit_scale; a whole open_clip checkpoint has one.")
    names = [*(TIMM_NAMES if is_timm else []), *(BERT_NAMES if is_bert else []), *NATIVE_NAMES]
    scale, bias = tensors.pop("logit_scale"), tensors.pop("logit_bias", None)
    weights, ignored = _renamed(str(folder), tensors, names)
    source = SourceCheckpoint(str(folder), vision_config, text_config, fields, weights, ignored)
    source.set_temperature(scale, bias)
    return source


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of an open_clip-format folder, float32; nothing but tensors is ever unpickled.

    Raises:
        ValueError: if neither file is there, or if it holds anything but named tensors.
    """
    safe, path = folder / SAFE_WEIGHTS_FILE, folder / WEIGHTS_FILE
    if safe.is_file():
        tensors = load_state_dict(str(safe))
    elif path.is_file():
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError ... for bad files
            raise ValueError(
                f"{path} cannot be read as tensors alone: {error} Take the safetensors file of this checkpoint, or "
                "save its state_dict again."
            ) from error
    else:
        raise ValueError(f"{folder} has neither {SAFE_WEIGHTS_FILE} nor {WEIGHTS_FILE}; download one of them into it.")
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(
            f"{path} does not hold named tensors alone; save the model's state_dict in it (of a training checkpoint "
            "its entry 'state_dict')."
        )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _check_options(path: Path, where: str, options: dict[str, Any], allowed: dict[str, tuple | None]) -> None:
    for name, value in options.items():
        if name not in allowed:
            raise ValueError(
                f"{path}: {where}.{name}={value!r} is not known here and might change the model; known options are "
                f"{', '.join(sorted(allowed))}."
            )
        if allowed[name] is not None and value not in allowed[name]:
            raise ValueError(
                f"{path}: {where}.{name} is {value!r}; only {', '.join(map(repr, allowed[name]))} can be converted."
            )


def _tensor(path: Path, tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the weights beside {path} have no tensor {name}, which its model has; is the file complete?")
    return tensors[name]


def _num_layers(tensors: dict[str, Tensor], pattern: str) -> int:
    """1 + the largest number that `pattern` finds in a name; 0 if none."""
    found = [int(match.group(1)) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _timm_vision(path: Path, options: dict[str, Any], tensors: dict[str, Tensor], activation: str) -> ViTConfig:
    _check_options(path, "vision_cfg", {"timm_pool": "avg", **options}, TIMM_OPTIONS)  # open_clip's default is "avg"
    name = options["timm_model_name"]
    match = TIMM_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{path}: timm_model_name is {name!r}; only the plain vit_SIZE_patchP_PIXELS can be converted, with SIZE "
            f"one of {', '.join(TIMM_HEADS)}."
        )
    width, _, patch_size, _ = _tensor(path, tensors, "visual.trunk.patch_embed.proj.weight").shape
    num_patches = _tensor(path, tensors, "visual.trunk.pos_embed").shape[1] - 1
    image_size = patch_size * round(num_patches**0.5)
    stated = options.get("image_size")
    if stated is not None and stated not in (image_size, [image_size, image_size]):
        raise ValueError(
            f"{path}: vision_cfg.image_size is {stated} and the weights have positions for {image_size} pixels; give "
            "the configuration of these weights."
        )
    return ViTConfig(  # timm always has the exact GELU
        hidden_size=width,
        num_hidden_layers=_num_layers(tensors, r"visual\.trunk\.blocks\.(\d+)\."),
        num_attention_heads=TIMM_HEADS[match.group(1)],
        intermediate_size=_tensor(path, tensors, "visual.trunk.blocks.0.mlp.fc1.weight").shape[0],
        image_size=image_size,
        patch_size=patch_size,
        layer_norm_eps=1e-6,
    )


def _bert_text(
    path: Path, options: dict[str, Any], tensors: dict[str, Tensor], activation: str
) -> tuple[BertConfig, dict[str, Any]]:
    options = {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler", **options}  # open_clip's defaults
    _check_options(path, "text_cfg", options, BERT_OPTIONS)
    words, width = _tensor(path, tensors, "text.transformer.embeddings.word_embeddings.weight").shape
    name = options["hf_model_name"].lower()
    kinds = _tensor(path, tensors, "text.transformer.embeddings.token_type_embeddings.weight").shape[0]
    if "bert" not in name or "roberta" in name or kinds != 2 or width % BERT_HEAD_WIDTH:
        raise ValueError(
            f"{path}: hf_model_name is {options['hf_model_name']!r} with {kinds} token types and width {width}; only "
            f"BERT itself (2 token types, heads of {BERT_HEAD_WIDTH} channels) can be converted."
        )
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=_num_layers(tensors, r"text\.transformer\.encoder\.layer\.(\d+)\."),
        num_attention_heads=width // BERT_HEAD_WIDTH,
        intermediate_size=_tensor(path, tensors, "text.transformer.encoder.layer.0.intermediate.dense.weight").shape[0],
        max_position_embeddings=_tensor(path, tensors, "text.transformer.embeddings.position_embeddings.weight").shape[
            0
        ],
        pad_token_id=0,
    )
    kind = options["hf_proj_type"] or "identity"
    return config, {"text_pooling": BERT_POOLINGS[options["hf_pooler_type"]], "text_projection_type": kind}


def _native_vision(
    path: Path, options: dict[str, Any], tensors: dict[str, Tensor], activation: str
) -> CLIPVisionConfig:
    _check_options(path, "vision_cfg", options, NATIVE_VISION_OPTIONS)
    width, layers = options.get("width", 768), options.get("layers", 12)
    image_size = options.get("image_size", 224)
    if not isinstance(layers, int) or "visual.conv1.weight" not in tensors or not isinstance(image_size, int):
        raise ValueError(
            f"{path}: vision_cfg has layers {layers} and image_size {image_size}, the weights "
            f"{'a' if 'visual.conv1.weight' in tensors else 'no'} tensor visual.conv1.weight; only open_clip's own "
            "Vision Transformers for square images can be converted, ResNets cannot."
        )
    return CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // options.get("head_width", 64),
        intermediate_size=int(width * options.get("mlp_ratio", 4.0)),
        image_size=image_size,
        patch_size=options.get("patch_size", 16),
        hidden_act=activation,
    )


def _native_text(
    path: Path, options: dict[str, Any], tensors: dict[str, Tensor], activation: str
) -> tuple[CLIPTextConfig, dict[str, Any]]:
    _check_options(path, "text_cfg", options, NATIVE_TEXT_OPTIONS)
    width, vocab_size = options.get("width", 512), options.get("vocab_size", 49408)
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=options.get("layers", 12),
        num_attention_heads=options.get("heads", 8),
        intermediate_size=int(width * options.get("mlp_ratio", 4.0)),
        max_position_embeddings=options.get("context_length", 77),
        hidden_act=activation,
        bos_token_id=vocab_size - 2,  # the last two of CLIP's vocabulary; it pools at the largest id, the end token
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return config, {"text_pooling": "eos", "text_projection_type": "linear"}


def _renamed(
    source: str, tensors: dict[str, Tensor], names: list[tuple[str, str]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by their names in RegionMedClipModel, and those not used with the reason."""
    weights, ignored = {}, {}
    for name, tensor in tensors.items():
        if re.fullmatch(r"(text\.)?attn_mask|text\.transformer\.embeddings\.(position|token_type)_ids", name):
            ignored[name] = COUNTS
            continue
        target = next((match.expand(new) for old, new in names if (match := re.fullmatch(old, name))), None)
        if target is None:
            raise ValueError(
                f"{source}: the tensor {name} of shape {tuple(tensor.shape)} has no place in this model; leaving it "
                "out would change what the checkpoint computes."
            )
        if "{qkv}" in target:  # query, key and value in one
            weights |= {target.format(qkv=part): rows.clone() for part, rows in zip("qkv", tensor.chunk(3))}
        elif "{transposed}" in target:
            weights[target.format(transposed="")] = tensor.t()
        else:
            weights[target] = tensor
    return weights, ignored
