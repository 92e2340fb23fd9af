"""A folder of exported graphs: with tokenizer, settings, a report of how alike they are, and a program that runs them.

It is whole or not there: it is written beside its place and renamed, once the graphs agree with the model.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_regionmed_clip.shared_space import Temperatures
from regionmed_clip.eval.results import describe_hardware
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.model_cards.export.graph_paths import PATHS, GraphPath
from regionmed_clip.model_cards.export.graphs import (
    graph_files,
    import_onnx,
    open_onnx,
    open_torch_export,
    write_int8,
    write_onnx,
    write_torch_export,
)
from regionmed_clip.model_cards.export.parity import (
    BATCH,
    ParityInputs,
    Runner,
    cosines,
    largest_differences,
    milliseconds,
    read_inputs,
)

ONNX, TORCH_EXPORT = "onnx", "torch_export"
FORMATS = (ONNX, TORCH_EXPORT)
SUFFIX_OF_FORMAT = {ONNX: ".onnx", TORCH_EXPORT: ".pt2"}
MAX_DIFFERENCE, LEAST_INT8_COSINE = 1e-4, 0.99
SETTINGS_NAME, REPORT_NAME, EXAMPLE_NAME = "export.json", "parity.json", "onnx_inference.py"
MAX_KNOWN_LENGTH = 1_000_000  # transformers marks "no limit" by a huge model_max_length
SCALES = ("image_text", "fused_image_text", "region_text")  # terms of which cosines become logits
ODD_TEXTS = ("结节 😀 é", "\u202eright\0", "nodule " * 600)  # the last is longer than any text tower reads
DEFAULT_DATA = "phantom:num_test=32,num_train=1"


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is to be exported; see `regionmed-export --help`."""

    model: Path | str
    output: Path | str
    format: str = ONNX
    is_int8: bool = False
    data: str = DEFAULT_DATA
    split: str = "test"


def export_model(settings: ExportSettings) -> dict[str, Any]:
    """The report, which is also parity.json of the folder; docs/export.md lists its entries.

    Raises:
        ValueError: a bad setting or model; an OUTPUT that is there; a graph that differs from the model by more than
            MAX_DIFFERENCE, or a program whose preprocessing does.
    """
    output = Path(settings.output).absolute()
    _check(settings, output)
    model, processor = load_model(settings.model)
    inputs = read_inputs(processor, settings.data, settings.split)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        report = _fill(temporary, settings, model, processor, inputs)
        for path in temporary.iterdir():
            path.chmod(0o644)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _check(settings: ExportSettings, output: Path) -> None:
    """None; ValueError for a setting that cannot be."""
    if settings.format not in FORMATS:
        raise ValueError(f"format {settings.format!r} is not known; it must be one of {', '.join(FORMATS)}.")
    if settings.is_int8 and settings.format != ONNX:
        raise ValueError(f"--int8 is of format {ONNX}, and the format is {settings.format}; leave one of them out.")
    if output.exists():
        raise ValueError(f"{output} is there; nothing is written over it. Name another --output, or delete it.")
    if settings.format == ONNX:
        import_onnx()


def _fill(folder: Path, settings: ExportSettings, model: Any, processor: Any, inputs: ParityInputs) -> dict[str, Any]:
    """The report, after writing everything into the folder."""
    report: dict[str, Any] = {
        "model_revision": weights_revision(model),
        "format": settings.format,
        "hardware": f"{describe_hardware()}; all of this on the CPU",
        "threads": torch.get_num_threads(),
        "inputs": {
            "source": inputs.source,
            "images": len(inputs.pictures),
            "texts": len(inputs.texts),
            "regions": int(inputs.tensors["region_mask"].sum()),
        },
        "paths": {path.name: _export_path(folder, path, model, settings, inputs) for path in PATHS},
    }
    files = {path.name: path.name + SUFFIX_OF_FORMAT[settings.format] for path in PATHS}
    of_int8 = {name: entry.get("int8", {}).get("file") for name, entry in report["paths"].items()}
    of_int8 = {name: file for name, file in of_int8.items() if file}
    exported = _settings_of(model, processor) | {"files": files, "int8_files": {**files, **of_int8} if of_int8 else {}}
    _write_json(folder / SETTINGS_NAME, exported)
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    if settings.format == ONNX:
        shutil.copyfile(Path(__file__).with_name(EXAMPLE_NAME), folder / EXAMPLE_NAME)
        report["preprocessing"] = _compare_preprocessing(folder, processor, inputs)
    _write_json(folder / REPORT_NAME, report)
    return report


def _export_path(
    folder: Path, path: type[GraphPath], model: Any, settings: ExportSettings, inputs: ParityInputs
) -> dict[str, Any]:
    """The report's entry of a path, after writing its graphs."""
    file = folder / (path.name + SUFFIX_OF_FORMAT[settings.format])
    runners: dict[str, Runner] = {"eager": partial(_run_eager, path(model).eval())}
    if settings.format == ONNX:
        write_onnx(path, model, file)
        runners[ONNX] = open_onnx(file, torch.get_num_threads())
    else:
        write_torch_export(path, model, file)
        runners[TORCH_EXPORT] = open_torch_export(file)
    differences = largest_differences(path, runners["eager"], runners[settings.format], inputs)
    entry: dict[str, Any] = {"file": file.name, "bytes": _size(file), "largest_difference": differences}
    if max(differences.values()) > MAX_DIFFERENCE:
        raise ValueError(
            f"the graph of {path.name!r} differs from the model by {max(differences.values()):.1e}; at most "
            f"{MAX_DIFFERENCE:.0e} is allowed, so nothing was written. Please report it with the model's config.json."
        )
    if settings.is_int8:
        entry["int8"] = _export_int8(file, path, runners, inputs)
    times = milliseconds(path, runners, inputs)
    entry |= {"milliseconds": times, "batch": min(BATCH, inputs.num_items(path))}
    entry["times_as_fast_as_eager"] = {
        name: round(times["eager"] / taken, 2) for name, taken in times.items() if name != "eager"
    }
    return entry


def _export_int8(
    graph: Path, path: type[GraphPath], runners: dict[str, Runner], inputs: ParityInputs
) -> dict[str, Any]:
    """The report's entry of the 8-bit graph, whose file is kept where it is near enough; its runner is added then."""
    file = graph.with_name(f"{path.name}_int8{graph.suffix}")
    write_int8(graph, file)
    run = open_onnx(file, torch.get_num_threads())
    found = cosines(path, runners["eager"], run, inputs)
    entry: dict[str, Any] = {"file": file.name, "bytes": _size(file), "cosine": found}
    if min(one["least"] for one in found.values()) >= LEAST_INT8_COSINE:
        runners["int8"] = run
        return entry
    for one in graph_files(file):
        one.unlink()
    return entry | {"file": None, "left_out": f"a cosine lies below {LEAST_INT8_COSINE}"}


def _size(graph: Path) -> int:
    """Bytes of a graph, its weights included."""
    return sum(file.stat().st_size for file in graph_files(graph))


def _run_eager(path: GraphPath, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The outputs of the model itself."""
    with torch.no_grad():
        return list(path(*inputs.values()))


def _settings_of(model: Any, processor: Any) -> dict[str, Any]:
    """What a program without this package must know: how pictures become pixel values, texts ids, cosines logits."""
    image, tokenizer = processor.image_processor, processor.tokenizer
    width, height = image.frame_size
    is_source, size = image.geometry == "source", image.size
    factor = image.rescale_factor if image.do_rescale else 1.0
    mean, std = (np.array(values, dtype=np.float64) for values in (image.image_mean, image.image_std))
    if not image.do_normalize:
        mean, std = np.zeros(3), np.ones(3)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"the tokenizer is a {type(tokenizer).__name__} without a tokenizer.json, which programs outside Python's "
            "transformers need; give a model with a fast tokenizer."
        )
    if not image.do_resize:
        raise ValueError("the image processor has do_resize=False; an exported program always resizes. Turn it on.")
    temperatures: Temperatures = model.temperatures
    return {
        "image": {
            "width": width,
            "height": height,
            "resized_to": [size.width, size.height] if is_source and size.width and size.height else None,
            "shortest_edge": size.shortest_edge if is_source and not (size.width and size.height) else None,
            "crop_rounding": image.crop_rounding,
            "resample": int(image.resample),
            "window": image.window,
            "scale": np.broadcast_to(factor / std, (3,)).tolist(),
            "shift": np.broadcast_to(-mean / std, (3,)).tolist(),
        },
        "text": {
            "max_length": tokenizer.model_max_length if tokenizer.model_max_length <= MAX_KNOWN_LENGTH else None,
            "pads_to_full_length": processor.text_pad_to_full_length,
            "padding_side": tokenizer.padding_side,
            "pad_id": tokenizer.pad_token_id,
            "pad_token": tokenizer.pad_token,
            "splits_special_tokens": tokenizer.split_special_tokens,
        },
        "scales": {name: float(temperatures(name).detach()) for name in SCALES},
        "proposal_threshold": model.config.proposal_threshold,
        "projection_dim": model.config.projection_dim,
    }


def _compare_preprocessing(folder: Path, processor: Any, inputs: ParityInputs) -> dict[str, Any]:
    """How the copied program's pixel values, boxes and ids differ from the processor's; ValueError where they do."""
    program = _load_program(folder / EXAMPLE_NAME)
    model = program.OnnxModel(folder)
    opened = [_opened(picture) for picture in inputs.pictures]
    readable = [number for number, picture in enumerate(opened) if picture.mode in program.PICTURE_MODES]
    pixel_difference = 0.0
    for number in readable:
        pixels = model.frame(opened[number])[0] - inputs.tensors["pixel_values"][number].numpy()
        pixel_difference = max(pixel_difference, float(np.abs(pixels).max()))
    texts = [*inputs.texts, *(f"the {token} of" for token in processor.tokenizer.all_special_tokens), *ODD_TEXTS]
    encoded, wanted = model.tokenize(texts), processor(text=texts)
    is_same = all(np.array_equal(encoded[name], wanted[name].numpy()) for name in encoded)
    if pixel_difference > MAX_DIFFERENCE or not is_same:
        raise ValueError(
            f"{EXAMPLE_NAME} prepares its inputs otherwise than the processor: pixel values differ by "
            f"{pixel_difference:.1e}, ids {'do not' if is_same else 'do'} differ. Nothing was written; please "
            "report it with processor_config.json and tokenizer_config.json."
        )
    counts = {"pictures": len(readable), "texts": len(texts)}
    return {**counts, "largest_pixel_difference": pixel_difference, "ids_are_equal": is_same}


def _load_program(file: Path) -> Any:
    """The module in a file, as a user's `import onnx_inference` there would give it."""
    spec = importlib.util.spec_from_file_location("exported_onnx_inference", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader: Callable[[Any], None] = spec.loader.exec_module
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        loader(module)
    finally:
        del sys.modules[spec.name]
    return module


def _opened(picture: Any) -> Image.Image:
    """The picture of a record."""
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """None; the value as a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
