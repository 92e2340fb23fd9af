"""Checkpoints of others in the harness: their own embeddings, read by name, offline, and never by an untrained head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_checkpoints import (
    BIOMEDCLIP_CONFIG,
    biomedclip_tensors,
    save_open_clip,
    tiny_clip,
    tiny_dual_encoder,
    tiny_siglip,
    tiny_tokenizer,
)
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

from regionmed_clip.eval.baselines.image_text_model import ImageTextModel, load_all
from regionmed_clip.eval.baselines.model_entries import parse_entries
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.tasks.embedding import embed_examples, embed_readings, embed_texts
from regionmed_clip.eval.tasks.region import measure_region
from regionmed_clip.eval.tasks.region_readings import TRAINING_FREE
from regionmed_clip.processing.corpus.shown_image import shown_image

SQUARE = {"height": 32, "width": 32}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # of the tiny tokenizer
FOREIGN = {
    "clip": (lambda: tiny_clip(**IDS), CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)),
    "siglip": (tiny_siglip, SiglipImageProcessorPil(size=SQUARE)),
    "vision-text-dual-encoder": (lambda: tiny_dual_encoder("vit", "bert"), ViTImageProcessorPil(size=SQUARE)),
}
ACCURACY = "region_to_text_accuracy"
TEXTS = ["a small nodule in the left lung", "opacity in the right lung"]


def tokenizer_of(kind):
    """The tiny tokenizer, padding as the text tower of that kind expects it."""
    return tiny_tokenizer(pad_token="</s>" if kind in ("clip", "siglip") else "<pad>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model, processor):
    """kind -> folder of a tiny random checkpoint of that kind; "own" is ours."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, (build, image_processor) in FOREIGN.items():
        build().save_pretrained(root / kind)
        image_processor.save_pretrained(root / kind)
        tokenizer_of(kind).save_pretrained(root / kind)
    save_open_clip(root / "open_clip", BIOMEDCLIP_CONFIG, biomedclip_tensors())
    tokenizer_of("open_clip").save_pretrained(root / "open_clip")
    model.save_pretrained(root / "own")
    processor.save_pretrained(root / "own")
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("kind", FOREIGN)
def test_image_and_text_embeddings_are_the_checkpoints_own(folders, draw_example, kind):
    (entry,) = parse_entries([f"theirs={folders[kind]}"])
    loaded = ImageTextModel.load(entry)
    examples = [draw_example(i) for i in range(3)]
    embedded = embed_examples(loaded.model, loaded.processor, examples, region_reading="crop", progress=False)
    build, image_processor = FOREIGN[kind]
    source = build()
    pictures = [shown_image(example).convert("RGB") for example in examples]
    padding = "max_length" if kind == "siglip" else True  # as SigLIP was trained
    tokens = tokenizer_of(kind)(TEXTS, return_tensors="pt", padding=padding)
    if kind == "siglip":
        del tokens["attention_mask"]
    tokens.pop("token_type_ids", None)
    with torch.inference_mode():
        images = source.get_image_features(pixel_values=image_processor(pictures, return_tensors="pt")["pixel_values"])
        texts = source.get_text_features(**tokens)
    for found, expected in (
        (embedded.image_embeds, images),
        (embed_texts(loaded.model, loaded.processor, TEXTS), texts),
    ):
        theirs = torch.nn.functional.normalize(expected.pooler_output, dim=-1).numpy()
        np.testing.assert_allclose(found, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", [*FOREIGN, "open_clip"])
def test_every_checkpoint_is_measured_under_every_training_free_reading(folders, draw_example, kind):
    entries = parse_entries([f"{reading}={folders[kind]}:{reading}:pad" for reading in TRAINING_FREE])
    assert [entry.reading for entry in entries] == [entry.name for entry in entries] == list(TRAINING_FREE)
    loaded = ImageTextModel.load(entries[0])
    examples = [draw_example(i) for i in range(4)]
    splits = embed_readings(loaded.model, loaded.processor, examples, readings=TRAINING_FREE, progress=False)
    for split in splits.values():
        assert split.num_regions == 8
        np.testing.assert_allclose(np.linalg.norm(split.region_embeds, axis=1), 1.0, atol=1e-5)
        (accuracy,) = [figure for figure in measure_region(split, seed=0) if figure.key == (ACCURACY, None, None)]
        assert accuracy.n == 8
    embeds = [split.region_embeds for split in splits.values()]
    assert all(np.abs(first - other).max() > 1e-4 for i, first in enumerate(embeds) for other in embeds[i + 1 :])


def test_a_checkpoint_loads_with_the_same_weights_each_time_and_without_touching_the_random_state(folders):
    torch.manual_seed(7)
    (entry,) = parse_entries([str(folders["clip"])])
    before = torch.get_rng_state()
    first = ImageTextModel.load(entry)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert ImageTextModel.load(entry).revision == first.revision
    assert (first.name, first.region_reading) == ("clip", "crop")


def test_padded_geometry_loses_no_region_and_the_checkpoints_own_crop_does(folders, draw_example):
    example = draw_example(0, num_regions=1, size=(96, 48))
    example["regions"][0]["box"] = [0, 10, 12, 20]  # CLIP crops 24 columns on each side
    entries = parse_entries([f"source={folders['clip']}", f"pad={folders['clip']}:crop:pad"])
    outside = {}
    for loaded in load_all(entries):
        embedded = embed_examples(loaded.model, loaded.processor, [example, draw_example(1)], region_reading="crop")
        outside[loaded.name] = embedded.num_regions_outside
    assert outside == {"source": 1, "pad": 0}


def test_baselines_are_readings_of_the_first_model_and_share_its_weights(folders):
    entries = parse_entries([str(folders["own"]), f"clip={folders['clip']}"], ["crop", "red_circle", "crop"])
    assert [entry.name for entry in entries] == [
        "regionmed-clip",
        "regionmed-clip:crop",
        "regionmed-clip:red_circle",
        "clip",
    ]
    loaded = list(load_all(entries))
    assert loaded[0].model is loaded[1].model is loaded[2].model
    assert loaded[3].model is not loaded[0].model
    assert [one.region_reading for one in loaded] == ["roi", "crop", "red_circle", "crop"]
    assert [entry.has_trained_regions for entry in entries] == [True, False, False, False]
    assert entries[2].protocol == {"checkpoint": "regionmed_clip", "geometry": "own", "reading": "red_circle"}


def test_our_own_folder_loads_as_it_was_saved(folders, model):
    loaded, _ = load_model(folders["own"])
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_texts_beyond_the_tokenizers_limit_are_counted_once_each(folders):
    (entry,) = parse_entries([str(folders["clip"])])
    long = "a small nodule in the left lung a small opacity in the right lung"  # 14 words and the end; 12 fit
    assert ImageTextModel.load(entry).count_truncated([long, long, "a small nodule"]) == 1
    assert ImageTextModel.load(entry).count_truncated([]) == 0


@pytest.mark.parametrize(
    ("texts", "baselines", "message"),
    [
        (["theirs={clip}:roi"], [], "a clip checkpoint has learnt nothing; choose a training-free reading"),
        (["{own}:pad"], [], "always shows whole images"),
        (["a={own}", "a={clip}"], [], r"model names \['a'\] are given twice"),
        (["{own}"], ["roi"], r"baselines \['roi'\] are not known; choose from crop, blur"),
        (["{own}/nowhere"], [], "has no config.json"),
        (["{own}/nowhere"], [], "nothing is fetched from the Hub"),
        (["{own}:crops"], [], "'crops' is no reading; choose from roi, crop"),
        (["={own}"], [], "has no name"),
        (["mine="], [], "has no folder"),
        ([], [], "no model is given"),
    ],
)
def test_a_wrong_entry_is_refused_with_the_way_out(folders, texts, baselines, message):
    with pytest.raises(ValueError, match=message):
        parse_entries([text.format(**folders) for text in texts], baselines)


def test_a_run_and_its_adapters_are_told_from_its_model(folders, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it holds adapters alone; the merged model lies in final"):
        parse_entries([str(tmp_path / "adapter")])
    (tmp_path / "final").symlink_to(folders["own"])
    with pytest.raises(ValueError, match=f"give {tmp_path / 'final'}"):
        parse_entries([str(tmp_path)])


def test_a_folder_whose_files_are_not_whole_is_refused_by_name(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders["clip"] / "config.json").read_text())
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ValueError, match="model_type 'resnet'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        load_model(tmp_path)
