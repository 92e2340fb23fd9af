"""RegionMedClipProcessor.from_clip_pretrained: the pixels and token ids of the checkpoint's own processor."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import (
    BIOMEDCLIP_CONFIG,
    LENGTH,
    NATIVE_CONFIG,
    TEXT,
    VISION,
    biomedclip_tensors,
    native_tensors,
    save_open_clip,
    tiny_clip,
    tiny_dual_encoder,
    tiny_siglip,
    tiny_tokenizer,
)
from transformers import Siglip2Config
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

SIZES = [(32, 32), (33, 47), (47, 33), (101, 64), (7, 5), (35, 32), (32, 39), (640, 401)]  # (width, height)
TEXTS = ["a nodule in the left lung", "no finding"]


def pictures(mode="RGB"):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        for width, height in SIZES
    ]


def folder_of(tmp_path, model, image_processor, **tokenizer_settings):
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    tiny_tokenizer(**tokenizer_settings).save_pretrained(tmp_path)
    return tmp_path


SQUARE = {"height": 32, "width": 32}
SOURCES = {
    "clip": (tiny_clip, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)),
    "siglip": (tiny_siglip, SiglipImageProcessorPil(size=SQUARE)),
    "siglip2 of fixed resolution": (tiny_siglip, SiglipImageProcessorPil(size=SQUARE, resample=2)),
    "vit and bert": (
        lambda: tiny_dual_encoder("vit", "bert"),
        ViTImageProcessorPil(size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
    ),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", SOURCES)
def test_geometry_source_gives_the_pixel_values_of_the_checkpoints_own_processor(tmp_path, kind, mode):
    build, source = SOURCES[kind]
    processor = RegionMedClipProcessor.from_clip_pretrained(folder_of(tmp_path, build(), source), geometry="source")
    for picture in pictures(mode):
        expected = source(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        found = processor(images=picture)["pixel_values"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SOURCES)
def test_geometry_pad_shows_the_whole_image_in_the_sources_frame_and_colours(tmp_path, kind):
    build, source = SOURCES[kind]
    processor = RegionMedClipProcessor.from_clip_pretrained(folder_of(tmp_path, build(), source))
    images = processor.image_processor
    assert (images.geometry, images.frame_size, images.grid_size) == ("pad", (32, 32), (4, 4))
    assert (images.resample, list(images.image_mean)) == (source.resample, list(source.image_mean))
    assert images.geometry_for(64, 32).resized == (32, 16)


def test_regions_follow_the_sources_crop(tmp_path):
    build, source = SOURCES["clip"]
    processor = RegionMedClipProcessor.from_clip_pretrained(folder_of(tmp_path, build(), source), geometry="source")
    image = Image.new("L", (64, 32))  # 16 columns are cropped on each side
    with pytest.warns(UserWarning, match="cuts it away entirely"):
        batch = processor(images=image, boxes=[[(16, 0, 32, 32), (0, 0, 10, 10)]])
    assert batch["region_boxes"][0, 0].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert batch["region_mask"].tolist() == [[True, False]]


def test_siglip_texts_are_padded_to_the_towers_full_length(tmp_path):
    build, source = SOURCES["siglip"]
    folder = folder_of(tmp_path / "source", build(), source, max_length=10**30, model_input_names=["input_ids"])
    processor = RegionMedClipProcessor.from_clip_pretrained(folder)
    ids = processor(text=TEXTS)["input_ids"]
    assert processor.text_pad_to_full_length
    assert ids.shape == (2, LENGTH)
    expected = tiny_tokenizer()(TEXTS, padding="max_length")["input_ids"]
    assert ids.tolist() == expected
    processor.save_pretrained(tmp_path / "ours")
    loaded = RegionMedClipProcessor.from_pretrained(tmp_path / "ours")
    assert loaded(text=TEXTS)["input_ids"].tolist() == expected


def test_other_texts_are_trimmed_and_never_longer_than_the_tower(tmp_path):
    build, source = SOURCES["clip"]
    processor = RegionMedClipProcessor.from_clip_pretrained(folder_of(tmp_path, build(), source, max_length=500))
    assert processor(text=TEXTS)["input_ids"].shape == (2, 7)
    assert processor(text=["lung " * 40])["input_ids"].shape == (1, LENGTH)


def test_a_roberta_tower_has_two_positions_fewer_than_its_table(tmp_path):
    model = tiny_dual_encoder("clip", "roberta")  # LENGTH + 2 positions
    folder = folder_of(tmp_path, model, CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE), max_length=500)
    assert RegionMedClipProcessor.from_clip_pretrained(folder).tokenizer.model_max_length == LENGTH


@pytest.mark.parametrize("kind", ["clip", "siglip", "biomedclip"])
@torch.no_grad()
def test_model_and_processor_of_one_checkpoint_fit_and_meet_the_sources_own_logits(tmp_path, kind):
    if kind == "biomedclip":  # whose logits test_open_clip_checkpoints.py compares
        folder = save_open_clip(tmp_path / "source", BIOMEDCLIP_CONFIG, biomedclip_tensors())
        tiny_tokenizer(pad_token="<pad>").save_pretrained(folder)
    else:
        build, images = SOURCES[kind]
        source = build() if kind == "siglip" else tiny_clip(eos_token_id=1, pad_token_id=1)
        folder = folder_of(tmp_path / "source", source, images, model_input_names=["input_ids"])
    model = RegionMedClipModel.from_clip_pretrained(folder)
    processor = RegionMedClipProcessor.from_clip_pretrained(folder, geometry="source")
    batch = processor(images=pictures(), text=TEXTS)
    found = model(**batch).logits_per_image
    if kind != "biomedclip":
        padding = "max_length" if kind == "siglip" else True
        expected = source(
            pixel_values=torch.cat([images(picture, return_tensors="pt")["pixel_values"] for picture in pictures()]),
            input_ids=torch.tensor(tiny_tokenizer()(TEXTS, padding=padding)["input_ids"]),
        )
        torch.testing.assert_close(found, expected.logits_per_image, atol=1e-4, rtol=1e-5)  # pixels agree to 1e-6
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")  # checks that the tokenizer fits the model beside it
    model = RegionMedClipModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(
        model(
            **RegionMedClipProcessor.from_pretrained(tmp_path / "ours")(images=pictures(), text=TEXTS)
        ).logits_per_image,
        found,
    )


# ---- open_clip


def torchvision_pixels(picture, side, mean, std):
    """What open_clip shows: shortest edge to `side`, then torchvision's centre crop, which rounds half to even."""
    width, height = picture.size
    short = min(width, height)
    size = (int(side * width / short), int(side * height / short))
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture
    levels = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float64) / 255
    return torch.from_numpy((levels - mean) / std).permute(2, 0, 1)[None].float()


def test_open_clips_own_pixels_are_repeated_with_torchvisions_crop(tmp_path):
    folder = save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, {})
    tiny_tokenizer().save_pretrained(folder)
    processor = RegionMedClipProcessor.from_clip_pretrained(folder, geometry="source")
    shown = BIOMEDCLIP_CONFIG["preprocess_cfg"]
    for picture in pictures():
        expected = torchvision_pixels(picture, 32, np.array(shown["mean"]), np.array(shown["std"]))
        torch.testing.assert_close(processor(images=picture)["pixel_values"], expected, atol=1e-6, rtol=0)
    assert processor.image_processor.geometry_for(35, 32).offset == (-2, 0)  # 1.5 pixels
    assert processor.image_processor.patch_size == 16
    assert processor.tokenizer.model_max_length == 10
    processor.save_pretrained(tmp_path / "ours")
    loaded = RegionMedClipProcessor.from_pretrained(tmp_path / "ours")
    assert loaded.image_processor.geometry_for(35, 32).offset == (-2, 0)


@pytest.mark.parametrize(("model_type", "format_taken"), [("bert", "open_clip"), ("clip", "transformers")])
def test_of_two_formats_in_one_folder_a_whole_model_of_transformers_is_taken_first(tmp_path, model_type, format_taken):
    folder = save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, biomedclip_tensors())
    if model_type == "clip":
        folder_of(folder, tiny_clip(), CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE))
    else:
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        tiny_tokenizer().save_pretrained(folder)
    processor = RegionMedClipProcessor.from_clip_pretrained(folder)
    model = RegionMedClipModel.from_clip_pretrained(folder)
    patch_size = {"open_clip": 16, "transformers": 8}[format_taken]
    assert processor.image_processor.patch_size == model.config.vision_config.patch_size == patch_size


def test_a_squashing_open_clip_source_is_repeated(tmp_path):
    config = copy.deepcopy(NATIVE_CONFIG)
    config["preprocess_cfg"] = {
        "resize_mode": "squash",
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    tiny_tokenizer().save_pretrained(save_open_clip(tmp_path, config, native_tensors()))
    processor = RegionMedClipProcessor.from_clip_pretrained(tmp_path, geometry="source")
    source = SiglipImageProcessorPil(size=SQUARE, resample=2)
    for picture in pictures():
        expected = source(picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(processor(images=picture)["pixel_values"], expected, atol=1e-6, rtol=0)
    assert processor.image_processor.patch_size == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BIOMEDCLIP_CONFIG,
            "holds no tokenizer .*'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract' is not on this",
        ),
        (NATIVE_CONFIG, "'openai/clip-vit-base-patch32' is not on this machine"),
    ],
)
def test_an_open_clip_folder_without_a_tokenizer_says_which_to_download(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        RegionMedClipProcessor.from_clip_pretrained(save_open_clip(tmp_path, config, {}))


@pytest.mark.parametrize(
    ("shown", "geometry", "message"),
    [
        ({"resize_mode": "longest"}, "source", "'longest', which pads; take geometry='pad'"),
        ({"resize_mode": "crop"}, "pad", "resize_mode 'crop'"),
        ({"interpolation": "random"}, "pad", "interpolation 'random'"),
    ],
)
def test_open_clip_pixels_that_cannot_be_repeated_are_refused(tmp_path, shown, geometry, message):
    folder = save_open_clip(tmp_path, {**BIOMEDCLIP_CONFIG, "preprocess_cfg": shown}, {})
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        RegionMedClipProcessor.from_clip_pretrained(folder, geometry=geometry)


# ---- what is refused


def test_a_naflex_checkpoint_is_refused_by_name(tmp_path):
    vision = {**{k: v for k, v in VISION.items() if k != "image_size"}, "num_patches": 16}
    Siglip2Config(vision_config=vision, text_config=TEXT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="NaFlex"):
        RegionMedClipProcessor.from_clip_pretrained(tmp_path)


def test_an_image_processor_of_another_kind_is_refused_for_its_own_pixels_only(tmp_path):
    source = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    folder = folder_of(tmp_path, tiny_clip(), source)
    with pytest.raises(ValueError, match="cannot repeat a ConvNextImageProcessor"):
        RegionMedClipProcessor.from_clip_pretrained(folder, geometry="source")


def test_a_frame_that_the_tower_does_not_take_is_refused(tmp_path):
    folder = folder_of(tmp_path, tiny_clip(), SiglipImageProcessorPil(size={"height": 64, "width": 64}))
    with pytest.raises(ValueError, match=r"frames of \(64, 64\).*takes 32 a side"):
        RegionMedClipProcessor.from_clip_pretrained(folder)


def test_a_missing_image_processor_or_tokenizer_and_an_unknown_geometry_are_named(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image processor or tokenizer cannot be read"):
        RegionMedClipProcessor.from_clip_pretrained(tmp_path)
    build, source = SOURCES["clip"]
    with pytest.raises(ValueError, match="geometry 'crop' is not known"):
        RegionMedClipProcessor.from_clip_pretrained(folder_of(tmp_path, build(), source), geometry="crop")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "regionmed_clip"}))
    with pytest.raises(ValueError, match="load its processor with from_pretrained"):
        RegionMedClipProcessor.from_clip_pretrained(tmp_path)


def test_settings_may_be_given_instead_of_the_checkpoints(tmp_path):
    build, source = SOURCES["clip"]
    folder = folder_of(tmp_path, build(), source)
    processor = RegionMedClipProcessor.from_clip_pretrained(folder, size={"height": 64, "width": 64})
    assert processor.image_processor.grid_size == (8, 8)
    with pytest.raises(ValueError, match=r"settings \['colour'\] are not known"):
        RegionMedClipProcessor.from_clip_pretrained(folder, colour=True)
