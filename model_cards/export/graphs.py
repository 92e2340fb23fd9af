"""Graphs of a path: by `torch.onnx.export`, by `torch.export`, and 8-bit ones that onnxruntime makes of the first."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from regionmed_clip.model_cards.export.graph_paths import GraphPath, sample_inputs

SAMPLE_SIZES = (2, 3, 7)  # images (or texts), regions, tokens: none of them 1, which would be taken for fixed
QUANTIZED_OPERATORS = ["MatMul", "Gemm"]  # with constant weights; nearly all there is to compute
EXTERNAL_ABOVE_BYTES = 1_500_000_000  # of weights; a file in protobuf holds 2 GiB at most
PARTS_OF_PATH = {  # the parts that a path does not pass through, which a graph need not carry
    "image": ("text_model", "text_projection", "roi_processor", "region_fusion", "proposal_head", "temperatures"),
    "text": ("vision_model", "visual_projection", "roi_processor", "region_fusion", "proposal_head", "temperatures"),
    "regions": ("text_model", "text_projection", "temperatures"),
}


def import_onnx() -> tuple[Any, Any]:
    """(onnx, onnxruntime); a ValueError says what to install where they or the exporter's onnxscript are absent."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ValueError(
            f"exporting to ONNX needs a package that cannot be imported ({error}): pip install onnx onnxruntime "
            'onnxscript, or in a checkout pip install -e ".[export]".'
        ) from error
    assert onnxscript  # used by torch.onnx.export
    return onnx, onnxruntime


def bare_path(path: type[GraphPath], model: Any) -> GraphPath:
    """The path over the parts of the model that it passes through, in evaluation mode; the model stays as it is."""
    part = copy.copy(model)
    part._modules = {name: module for name, module in model._modules.items() if name not in PARTS_OF_PATH[path.name]}
    return path(part).eval()


def write_onnx(path: type[GraphPath], model: Any, file: Path) -> None:
    """None; `file` is then a graph in ONNX, its weights beside it where they are more than EXTERNAL_ABOVE_BYTES."""
    import_onnx()
    bare = bare_path(path, model)
    num_bytes = sum(tensor.nbytes for tensor in bare.state_dict().values())
    inputs = sample_inputs(path, model, *SAMPLE_SIZES)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            bare,
            inputs,
            input_names=list(path.inputs),
            output_names=list(path.outputs),
            dynamic_shapes=path.inputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(file, external_data=num_bytes > EXTERNAL_ABOVE_BYTES)


def graph_files(file: Path) -> list[Path]:
    """The file of a graph, and that of its weights where they lie beside it; ONNX finds it by its name."""
    weights = file.with_name(f"{file.name}.data")
    return [file, weights] if weights.exists() else [file]


def write_int8(graph: Path, file: Path) -> None:
    """None; `file` is then the graph with 8-bit weights, a scale for each channel, and activations cut to 8 bits as
    they come; the weights lie beside it where those of `graph` do."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), tempfile.TemporaryDirectory(prefix="int8-") as work:
        made = Path(work) / file.name
        quantize_dynamic(
            graph,
            made,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            use_external_data_format=len(graph_files(graph)) > 1,
        )
        for one in graph_files(made):
            shutil.move(one, file.with_name(one.name))


def write_torch_export(path: type[GraphPath], model: Any, file: Path) -> None:
    """None; `file` is then a program that `torch.export.load` reads, its sizes as open as those of the ONNX graph."""
    open_axis = torch.export.Dim.DYNAMIC
    shapes = {name: dict.fromkeys(axes, open_axis) for name, axes in path.inputs.items()}
    with _quiet(), torch.no_grad():
        inputs = sample_inputs(path, model, *SAMPLE_SIZES)
        program = torch.export.export(bare_path(path, model), inputs, dynamic_shapes=shapes)
        program.example_inputs = None  # the archive would hold them as a pickle
        torch.export.save(program, file)


def open_onnx(file: Path, num_threads: int) -> Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """A function of a graph's inputs by name that gives its outputs, run by onnxruntime on the CPU."""
    _, onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value) for value in found]

    return run


def open_torch_export(file: Path) -> Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """The same of a file of `write_torch_export`."""
    module = torch.export.load(file).module()

    def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(*inputs.values()))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's and onnxruntime's exporters say of themselves, and no one can act on, unsaid inside the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root", "")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
