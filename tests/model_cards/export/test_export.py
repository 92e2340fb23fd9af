"""Exported folders: equal to the model, runnable without torch, whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import tiny_clip, tiny_siglip, tiny_tokenizer
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

from regionmed_clip.model_cards.export import export_folder, graphs
from regionmed_clip.model_cards.export.export_command import format_report, main
from regionmed_clip.model_cards.export.export_folder import ExportSettings, export_model
from regionmed_clip.model_cards.export.graph_paths import PATHS, ImagePath, RegionPath
from regionmed_clip.model_cards.export.graphs import bare_path

TOLERANCE = 1e-4  # float32, another runtime
DATA = "phantom:num_test=8,num_train=1"
LABELS = ("chest radiograph with a nodule", "a cyst")
BOXES = ((10, 12, 60, 70), (0, 0, 144, 30))
WITHOUT_TORCH = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "modeling_regionmed_clip", "regionmed_clip"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv.pop(1))
import onnx_inference

sys.exit(onnx_inference.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model_folder(model, processor, tmp_path_factory) -> Path:
    """A tiny untrained model on disk, its fusion switched on."""
    folder = tmp_path_factory.mktemp("model")
    with torch.no_grad():
        before = model.region_fusion.alpha.clone()
        model.region_fusion.alpha.fill_(0.5)
        model.save_pretrained(folder)
        model.region_fusion.alpha.copy_(before)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory) -> Path:
    """The folder of its ONNX graphs, 8-bit ones too; made once, in about 10 s."""
    output = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(ExportSettings(model=model_folder, output=output, is_int8=True, data=DATA))
    return output


@pytest.fixture(scope="module")
def report(exported) -> dict:
    return json.loads((exported / "parity.json").read_text())


@pytest.fixture(scope="module")
def program(exported):
    """The program that lies beside the graphs, as a module."""
    return export_folder._load_program(exported / "onnx_inference.py")


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (136, 144, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_every_graph_agrees_with_the_model(report):
    assert set(report["paths"]) == {"image", "text", "regions"}
    for path in PATHS:
        differences = report["paths"][path.name]["largest_difference"]
        assert set(differences) == set(path.outputs)
        assert max(differences.values()) <= TOLERANCE
    assert report["preprocessing"]["largest_pixel_difference"] <= 1e-5
    assert report["preprocessing"]["pictures"] == 8
    assert report["preprocessing"]["ids_are_equal"]


def test_the_8_bit_graphs_are_measured_and_kept_where_they_are_near_enough(exported, report):
    for name, entry in report["paths"].items():
        least = min(one["least"] for one in entry["int8"]["cosine"].values())
        assert (exported / f"{name}_int8.onnx").is_file() == (least >= 0.99)
        assert set(entry["times_as_fast_as_eager"]) >= {"onnx"}


def test_an_8_bit_graph_that_is_too_far_off_is_left_out(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_folder, "PATHS", (RegionPath,))
    monkeypatch.setattr(export_folder, "LEAST_INT8_COSINE", 1.1)
    monkeypatch.setattr(export_folder, "_compare_preprocessing", lambda *a: {})
    report = export_model(ExportSettings(model=model_folder, output=tmp_path / "onnx", is_int8=True, data=DATA))
    assert report["paths"]["regions"]["int8"]["file"] is None
    assert not list((tmp_path / "onnx").glob("*int8*"))
    assert "left out: a cosine lies below 1.1" in format_report(report)
    assert json.loads((tmp_path / "onnx" / "export.json").read_text())["int8_files"] == {}


@pytest.mark.parametrize("least_cosine", [-1.0, 1.1], ids=["kept", "left out"])
def test_weights_too_many_for_one_file_lie_beside_the_graph(
    model_folder, tmp_path, monkeypatch, program, picture, least_cosine
):
    """With a limit of 0 bytes instead of 1.5 GB; an 8-bit graph that is left out leaves no weights behind."""
    monkeypatch.setattr(graphs, "EXTERNAL_ABOVE_BYTES", 0)
    monkeypatch.setattr(export_folder, "PATHS", (ImagePath,))
    monkeypatch.setattr(export_folder, "LEAST_INT8_COSINE", least_cosine)
    monkeypatch.setattr(export_folder, "_compare_preprocessing", lambda *a: {})
    folder = tmp_path / "onnx"
    entry = export_model(ExportSettings(model=model_folder, output=folder, is_int8=True, data=DATA))["paths"]["image"]
    kept = ["image.onnx"] + ["image_int8.onnx"] * (least_cosine < 0)
    assert sorted(path.name for path in folder.glob("image*")) == sorted([*kept, *(f"{name}.data" for name in kept)])
    assert entry["bytes"] == sum((folder / name).stat().st_size for name in ("image.onnx", "image.onnx.data"))
    assert (folder / "image.onnx.data").stat().st_size > 4 * 16 * 3 * 8 * 8  # the patches' weights alone, float32
    assert max(entry["largest_difference"].values()) <= TOLERANCE
    moved = folder.rename(tmp_path / "elsewhere")  # graphs find their weights by name, wherever the folder lies
    for is_int8 in (False, True)[: len(kept)]:
        assert program.OnnxModel(moved, is_int8=is_int8).embed_images([picture]).shape == (1, 16)


def test_the_program_gives_what_model_and_processor_give(exported, program, model_folder, picture):
    from regionmed_clip.eval.saved_models import load_model

    model, processor = load_model(model_folder)
    inputs = processor(images=[picture], boxes=[list(BOXES)], text=list(LABELS), region_text=list(LABELS))
    with torch.inference_mode():
        wanted = model(**inputs)
    graphs = program.OnnxModel(exported)
    regions = graphs.embed_regions(picture, BOXES)
    np.testing.assert_allclose(graphs.embed_images([picture]), wanted.image_embeds, atol=TOLERANCE)
    np.testing.assert_allclose(graphs.embed_texts(LABELS), wanted.text_embeds, atol=TOLERANCE)
    np.testing.assert_allclose(regions, wanted.region_embeds[0], atol=TOLERANCE)
    probabilities = graphs.classify(regions, LABELS, "region_text")
    np.testing.assert_allclose(probabilities, wanted.logits_per_region.softmax(-1)[0], atol=1e-3)


def test_a_model_with_a_window_of_ct_is_compared_and_run_on_8_bit_pictures_as_they_are(
    model, processor, program, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr(export_folder, "PATHS", (ImagePath,))
    model.save_pretrained(tmp_path / "model")
    windowed = processor.image_processor.with_overrides(window="lung")
    type(processor)(windowed, processor.tokenizer).save_pretrained(tmp_path / "model")
    report = export_model(ExportSettings(model=tmp_path / "model", output=tmp_path / "onnx", data=DATA))
    assert report["preprocessing"]["pictures"] == 8
    assert report["preprocessing"]["largest_pixel_difference"] <= 1e-5
    exported = program.OnnxModel(tmp_path / "onnx")
    np.testing.assert_allclose(exported.frame(picture)[0], processor(images=[picture])["pixel_values"][0], atol=1e-6)
    with pytest.raises(ValueError, match=r"window it to 8 bits first \(this model was saved with the window lung"):
        exported.frame(Image.new("I;16", (9, 9)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_the_program_reads_pictures_of_all_8_bit_modes_as_the_processor_does(
    program, exported, processor, picture, mode
):
    converted = picture.convert(mode)
    pixels, _ = program.OnnxModel(exported).frame(converted)
    np.testing.assert_allclose(pixels, processor(images=[converted])["pixel_values"][0], atol=1e-6)


def test_the_program_places_pictures_as_a_source_checkpoint_does(program, processor, picture):
    image = {"width": 32, "height": 32, "resized_to": None, "shortest_edge": 48, "crop_rounding": "down"}
    settings = {"geometry": "source", "size": {"shortest_edge": 48}, "do_center_crop": True}
    wanted = processor.image_processor.with_overrides(**settings, crop_size={"height": 32, "width": 32})
    placement = program._place(picture.size, image)
    geometry = wanted.geometry_for(*picture.size)
    assert (placement.resized, placement.offset) == (tuple(geometry.resized), tuple(geometry.offset))
    np.testing.assert_allclose(
        placement.to_frame([(50, 40, 90, 90)]), geometry.boxes_to_frame_fractions([(50, 40, 90, 90)]), atol=1e-6
    )
    with pytest.raises(ValueError, match="outside what this model sees"):
        placement.to_frame([(0, 0, 5, 5)])


@pytest.mark.parametrize("text", ["[SEP]", "the [PAD] of", "[CLS] [UNK] [MASK]", "结节 😀 é", "\0", "Ü" * 64])
def test_the_program_splits_texts_as_the_processor_does(program, exported, processor, text):
    found, wanted = program.OnnxModel(exported).tokenize([text, "a"]), processor(text=[text, "a"])
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_program_that_reads_special_tokens_in_texts_is_not_written(model_folder, tmp_path, monkeypatch):
    settings_of = export_folder._settings_of

    def forgetful(*a):
        settings = settings_of(*a)
        return settings | {"text": settings["text"] | {"splits_special_tokens": False}}

    monkeypatch.setattr(export_folder, "_settings_of", forgetful)
    monkeypatch.setattr(export_folder, "PATHS", (ImagePath,))
    with pytest.raises(ValueError, match=r"prepares its inputs otherwise .* ids do differ"):
        export_model(ExportSettings(model=model_folder, output=tmp_path / "onnx", data=DATA))
    assert list(tmp_path.iterdir()) == []


def test_of_nothing_there_are_no_embeddings(program, exported, picture):
    graphs = program.OnnxModel(exported)
    for found in (graphs.embed_images([]), graphs.embed_texts([]), graphs.embed_regions(picture, [])):
        assert (found.shape, found.dtype) == ((0, 16), np.float32)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 5, 9], "is empty or outside"),
        ([0, 0, 500, 5], "is empty or outside the picture of 144 x 136"),
        (
            [144.2, 0, 144.4, 136],
            "is empty or outside the picture of 144 x 136",
        ),  # within the half pixel that is let by
        ([0, 0, float("nan"), 5], "four finite numbers"),
    ],
)
def test_the_program_refuses_a_box_that_is_none(program, exported, picture, box, message):
    with pytest.raises(ValueError, match=message):
        program.OnnxModel(exported).embed_regions(picture, [box])


def test_the_program_runs_without_torch_and_without_this_package(exported, picture, tmp_path):
    """Takes about 2 s: a process in which they cannot be imported."""
    picture.save(tmp_path / "picture.png")
    asked = [str(tmp_path / "picture.png"), "--labels", *LABELS, "--box", "10", "12", "60", "70"]
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH, str(exported), *asked, "--folder", str(exported)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("picture: chest radiograph with a nodule 0.")
    assert second.startswith("box 10 12 60 70: chest radiograph")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep)
    command[command.index(str(tmp_path / "picture.png"))] = str(deep)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "more than 8 bits" in done.stderr) == (2, True)


def test_a_graph_that_differs_is_not_written(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_folder, "PATHS", (RegionPath,))
    monkeypatch.setattr(export_folder, "largest_differences", lambda *a: {"region_embeds": 0.02})
    with pytest.raises(ValueError, match=r"graph of 'regions' differs from the model by 2\.0e-02"):
        export_model(ExportSettings(model=model_folder, output=tmp_path / "onnx", data=DATA))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(model_folder, exported, capsys):
    before = sorted(path.name for path in exported.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(model_folder), "--output", str(exported)])
    assert ended.value.code == 2
    assert "nothing is written over it" in capsys.readouterr().err
    assert sorted(path.name for path in exported.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tflite"}, "format 'tflite' is not known; it must be one of onnx, torch_export"),
        ({"format": "torch_export", "is_int8": True}, "--int8 is of format onnx"),
        ({"model": "nowhere"}, "model 'nowhere' has no config.json"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(change, message, model_folder, tmp_path):
    settings = {"model": model_folder, "output": tmp_path / "onnx", **change}
    with pytest.raises(ValueError, match=message):
        export_model(ExportSettings(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_path_leaves_the_parts_out_that_it_does_not_pass_through(model):
    names = {name.partition(".")[0] for name, _ in bare_path(PATHS[0], model).model.named_parameters()}
    assert names == {"vision_model", "visual_projection"}
    assert hasattr(model, "text_model")


@pytest.mark.filterwarnings("ignore")  # of torch.export.load, on its own archive
def test_programs_of_torch_export_agree_and_hold_no_pickle(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_folder, "PATHS", PATHS[2:])
    report = export_model(ExportSettings(model=model_folder, output=tmp_path / "pt2", format="torch_export", data=DATA))
    assert max(report["paths"]["regions"]["largest_difference"].values()) <= TOLERANCE
    with zipfile.ZipFile(tmp_path / "pt2" / "regions.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    assert not any(content.startswith((b"\x80\x02", b"\x80\x04", b"PK")) for content in contents)


@pytest.mark.parametrize(
    ("build", "image_processor", "shortest_edge"),
    [
        (
            lambda: tiny_clip(bos_token_id=0, eos_token_id=1, pad_token_id=1),
            CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
            32,
        ),
        (tiny_siglip, SiglipImageProcessorPil(size={"height": 32, "width": 32}), None),
    ],
    ids=["clip", "siglip"],
)
def test_a_checkpoint_of_others_is_exported_with_its_own_geometry(build, image_processor, shortest_edge, tmp_path):
    """Takes about 8 s each: text towers pooled at the end token and at the last, pictures cropped and squashed."""
    build().save_pretrained(tmp_path / "theirs")
    image_processor.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer(pad_token="</s>").save_pretrained(tmp_path / "theirs")
    report = export_model(ExportSettings(model=tmp_path / "theirs", output=tmp_path / "onnx", data=DATA))
    assert max(max(entry["largest_difference"].values()) for entry in report["paths"].values()) <= TOLERANCE
    assert json.loads((tmp_path / "onnx" / "export.json").read_text())["image"]["shortest_edge"] == shortest_edge
