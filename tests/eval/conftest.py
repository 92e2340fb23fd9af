"""A tiny real model and processor, a small drawn corpus, and an embedded split built by hand."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_regionmed_clip.configuration_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit, unique_texts
from regionmed_clip.eval.tasks.measured import RunContext
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

FINDINGS = ("nodule", "effusion", "cyst")
COLOURS = {"nodule": (220, 40, 40), "effusion": (40, 220, 40), "cyst": (40, 40, 220)}
IMAGE_SIZE = 32


@pytest.fixture(scope="session")
def processor() -> RegionMedClipProcessor:
    """A processor of 32-pixel frames and 8-pixel patches with a tokenizer of a few words."""
    texts = [f"Chest radiograph with a {finding} in the left zone." for finding in FINDINGS]
    image_processor = RegionMedClipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, patch_size=8)
    return RegionMedClipProcessor(image_processor, train_tokenizer(texts, vocab_size=300, max_length=32))


@pytest.fixture(scope="session")
def model(processor) -> RegionMedClipModel:
    """An untrained model of 16 channels, the same in every run."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = processor.tokenizer
    config = RegionMedClipConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": IMAGE_SIZE, "patch_size": 8, **tower},
        text_config={
            "model_type": "bert",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "pad_token_id": tokenizer.pad_token_id,
            **tower,
        },
        projection_dim=16,
    )
    return RegionMedClipModel(config).eval()


@pytest.fixture
def context() -> RunContext:
    """A run context with plain values."""
    return RunContext(
        data_revision="drawn@1",
        model_revision="untrained",
        split="test",
        split_sha256="0" * 64,
        seed=0,
        hardware="a CPU",
        command="pytest",
    )


def _draw_example(index: int, *, source: str = "drawn", num_regions: int = 2, size: tuple[int, int] = (48, 40)) -> dict:
    """An example as the corpus builder yields it: a noisy grey picture with `num_regions` coloured squares."""
    generator = np.random.default_rng(index)
    pixels = generator.integers(60, 120, (size[1], size[0], 3), dtype=np.uint8)
    regions = []
    for number in range(num_regions):
        finding = FINDINGS[(index + number) % 3]
        place = "left zone" if number % 2 == 0 else "right zone"
        x, y = (4 if number % 2 == 0 else 28) + int(generator.integers(0, 6)), int(generator.integers(0, 29))
        pixels[y : y + 10, x : x + 10] = COLOURS[finding]
        text = f"{finding} in the {place}"
        regions.append(
            {"box": [x, y, x + 10, y + 10], "finding": finding, "is_negated": False, "description": text}
            | {"key": hash_text(text)}
            | dict.fromkeys(("anatomy", "laterality", "place", "size", "severity", "certainty"))
        )
    caption = "Chest radiograph with " + " and ".join(r["description"] for r in regions) + f", case {index % 25}."
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {
        "image_id": f"{source}-{index}",
        "image": {"bytes": buffer.getvalue(), "path": None},
        "width": size[0],
        "height": size[1],
        "source": source,
        "modality": "chest radiograph" if index % 2 else "fundus photograph",
        "view": None,
        "anatomy": None,
        "caption": caption,
        "caption_key": hash_text(caption),
        "regions": regions,
        "qa": [],
    }


def hash_text(text: str) -> int:
    """A stable number for a text."""
    return zlib.crc32(text.encode())


def _embed_by_hand(
    image_embeds, captions, *, regions=(), region_text_embeds=None, sources=None, modalities=None, findings=None
) -> EmbeddedSplit:
    """An EmbeddedSplit in which caption t has the t-th unit vector; `regions`: (image, text, embedding, box) tuples."""
    image_embeds = np.array(image_embeds, dtype=np.float32)
    num_images, width = image_embeds.shape
    texts, image_caption, keys = unique_texts(captions, [hash_text(c) for c in captions])
    region_texts, region_text, region_keys = unique_texts([r[1] for r in regions], [hash_text(r[1]) for r in regions])
    identity = np.eye(width, dtype=np.float32)
    return EmbeddedSplit(
        image_ids=[f"image-{i}" for i in range(num_images)],
        image_sources=np.array(sources or ["drawn"] * num_images),
        image_modalities=np.array(modalities or ["CT"] * num_images),
        image_studies=np.array(modalities or ["CT"] * num_images),
        image_findings=findings or [frozenset()] * num_images,
        image_sizes_hw=np.full((num_images, 2), 100, dtype=np.int32),
        image_clusters=np.arange(num_images),
        image_sexes=np.full(num_images, ""),
        image_ages=np.full(num_images, np.nan, dtype=np.float32),
        image_embeds=image_embeds,
        image_caption=image_caption,
        captions=texts,
        caption_keys=keys,
        caption_embeds=identity[np.arange(len(texts)) % width],
        region_image=np.array([r[0] for r in regions], dtype=np.int64),
        region_embeds=np.array([r[2] for r in regions], dtype=np.float32).reshape(-1, width),
        region_text=region_text,
        region_findings=np.array([r[1].split()[-1] for r in regions], dtype=str),
        region_is_negated=np.zeros(len(regions), dtype=bool),
        region_boxes_pixel_xyxy=np.array([r[3] for r in regions], dtype=np.float32).reshape(-1, 4),
        region_colour_size=np.zeros((len(regions), 5), dtype=np.float32),
        region_facts=[{"box": list(r[3]), "finding": r[1].split()[-1], "description": r[1]} for r in regions],
        region_texts=region_texts,
        region_text_keys=region_keys,
        region_text_embeds=identity[: len(region_texts)] if region_text_embeds is None else region_text_embeds,
    )


@pytest.fixture(scope="session")
def draw_example():
    """The function that draws an example."""
    return _draw_example


@pytest.fixture(scope="session")
def embed_by_hand():
    """The function that builds an EmbeddedSplit from a few numbers."""
    return _embed_by_hand
