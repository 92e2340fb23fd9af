"""The notebooks: stored without outputs, and each runs from top to bottom on the smoke model; about 10 s each."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from regionmed_clip.eval import run as evaluation
from regionmed_clip.processing.corpus import command_line

nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SEEN = {  # notebook -> what its cells print, whatever the model has learnt
    "quickstart": ("million parameters, frame (48, 48)", "(drawn: ", "proposed, scores"),
    "own_data": ("my_source CC0 1.0 {'train': 18, 'test': 6}", "x1 must exceed x0", " texts: "),
    "region_search": ("60 images: exact", "asked by a box with: ", "[1.0, "),
}


def test_every_notebook_is_known_here():
    assert {path.stem for path in NOTEBOOKS} == set(SEEN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(notebook))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> Path:
    """The folder in which every notebook has a folder of its own."""
    return tmp_path_factory.mktemp("works")


@pytest.mark.filterwarnings("ignore")  # of jupyter's own client
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, smoke_model_folder, works, tmp_path, monkeypatch):
    if path.stem == "region_search":
        pytest.importorskip("faiss", reason="pip install -e '.[search]'")
    monkeypatch.setitem(os.environ, "REGIONMED_MODEL", str(smoke_model_folder))
    monkeypatch.setitem(os.environ, "REGIONMED_WORK", str(works / path.stem))
    monkeypatch.setitem(os.environ, "JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    for part in SEEN[path.stem]:
        assert part in printed
    assert any("image/png" in output.get("data", {}) for output in outputs) == (path.stem != "own_data")


def test_the_commands_after_your_own_data_work_on_what_its_cells_have_made(
    smoke_model_folder, works, tmp_path, monkeypatch
):
    """Takes about 10 s; the training that follows is left out."""
    (path,) = (path for path in NOTEBOOKS if path.stem == "own_data")
    assert (works / path.stem).is_dir(), "run the whole file: the cells run in the test before"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    places = {"runs/notebooks": works / path.stem, "runs/quickstart/final": smoke_model_folder}
    for place, there in places.items():
        texts = texts.replace(place, str(there))
    mains = {"regionmed-eval": evaluation.main, "regionmed-corpus": command_line.main}
    commands = [shlex.split(line) for line in texts.splitlines() if line.partition(" ")[0] in mains]
    assert [program for program, *_ in commands] == ["regionmed-eval", "regionmed-corpus"]
    monkeypatch.chdir(tmp_path)
    assert [mains[program](arguments) for program, *arguments in commands] == [0, 0]
    manifest = json.loads((tmp_path / "corpora" / "mine" / "manifest.json").read_text(encoding="utf-8"))
    assert {name: split["num_images"] for name, split in manifest["splits"].items()} == {"train": 18, "test": 6}
