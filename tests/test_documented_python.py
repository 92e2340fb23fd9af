"""Every block of Python in the pages on search, export and serving runs as it stands, on a model of the smoke recipe.

Takes about 40 s: an index and two exports are made as the pages say, in a folder where their paths lead somewhere.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from handler_http import load_handler, serving
from PIL import Image

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.corpus.sources.phantom import PhantomSource

pytest.importorskip("faiss", reason="pip install -e '.[search]'")
pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")

from regionmed_clip.eval.search.building import IndexSettings, build_index
from regionmed_clip.model_cards.export import export_folder
from regionmed_clip.model_cards.export.export_folder import ONNX, TORCH_EXPORT, ExportSettings, export_model
from regionmed_clip.model_cards.export.graph_paths import RegionPath, TextPath

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODEL = "runs/quickstart/final"
INDEX, EXPORT, SERVING = "search.md", "export.md", "deployment.md"
PRINTED = {  # page -> what each of its blocks prints, whatever the model has learnt
    INDEX: [r"^\[1\. .*\]", r"^1 [-+\d.e]+ phantom\S* \["],
    EXPORT: [r"^\[\[0\.\d+ +0\.\d+\]\]", r"^torch\.Size\(\[2, 32\]\)"],
    SERVING: [
        r"'xmin': 40\.0.*'labels': \[\{'score'",
        r"^\[\{'score': .*'label': '(nodule|normal)'",
        r"label='nodule'[\s\S]*answer='(yes|no)'",
    ],
}


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = [(page, number, block) for page in PRINTED for number, block in enumerate(blocks_of(page))]


@pytest.fixture(scope="module")
def place(smoke_model_folder, tmp_path_factory) -> Path:
    """A folder with the model, an index, exports and pictures where the pages say that they are."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(smoke_model_folder, folder / MODEL)
    record = next(one for one in PhantomSource(num_test=20, seed=1).records("test") if one.regions)
    picture = Image.open(io.BytesIO(record.image)).resize((144, 160))
    for name in ("case.png", "radiograph.png"):
        picture.save(folder / name)
    build_index(
        IndexSettings(model=folder / MODEL, data="phantom:num_test=30,num_train=1", output=folder / "runs/index")
    )
    for output, file_format, paths in (("onnx", ONNX, (TextPath, RegionPath)), ("pt2", TORCH_EXPORT, (TextPath,))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_folder, "PATHS", paths)  # those that the page uses
            export_model(ExportSettings(model=folder / MODEL, output=folder / "runs" / output, format=file_format))
    return folder


@pytest.fixture(scope="module")
def address(smoke_model_folder, tmp_path_factory):
    """A server of a model that answers questions too."""
    model, processor = load_model(smoke_model_folder)
    torch.manual_seed(1)
    names = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    answering = RegionMedClipForVisualQuestionAnswering(type(model.config).from_dict(model.config.to_dict() | names))
    answering.regionmed_clip.load_state_dict(model.state_dict())
    folder = stage_flat_folder(answering.eval(), processor, tmp_path_factory.mktemp("answering") / "final", results=[])
    before = Image.MAX_IMAGE_PIXELS
    with serving(load_handler(folder)) as address:
        yield address
    Image.MAX_IMAGE_PIXELS = before


def test_every_block_has_something_to_print():
    assert {page: len(blocks_of(page)) for page in PRINTED} == {page: len(parts) for page, parts in PRINTED.items()}


@pytest.mark.filterwarnings("ignore")  # of torch.export.load, on its own archive
@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{page}:{number}" for page, number, _ in BLOCKS])
def test_a_documented_block_runs(page, number, block, place, request, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the handler sets it for its process
    if "http://127.0.0.1:8000" in block:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the address is of this machine
        block = block.replace("http://127.0.0.1:8000", request.getfixturevalue("address"))
    exec(compile(block, f"{page}, block {number}", "exec"), {"__name__": "documented"})  # noqa: S102
    assert re.search(PRINTED[page][number], capsys.readouterr().out, re.MULTILINE)
