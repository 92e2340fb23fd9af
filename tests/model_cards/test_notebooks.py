"""The notebooks: stored without outputs, and each runs from top to bottom on a tiny model; about 10 s each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from regionmed_clip.model_cards.stage import stage_flat_folder

nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SEEN = {  # notebook -> what its cells print, whatever the model has learnt
    "quickstart": ("million parameters, frame (32, 32)", "(drawn: ", "proposed, scores"),
    "own_data": ("my_source CC0 1.0 {'train': ", "x1 must exceed x0", " texts: "),
    "region_search": ("60 images: exact", "asked by a box with: ", "[1.0, "),
}


@pytest.fixture(scope="module")
def model_folder(model, processor, tmp_path_factory) -> Path:
    """A tiny untrained model, staged as a run leaves it in final/."""
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


def test_every_notebook_is_known_here():
    assert {path.stem for path in NOTEBOOKS} == set(SEEN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(notebook))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.filterwarnings("ignore")  # of jupyter's own client
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, model_folder, tmp_path, monkeypatch):
    if path.stem == "region_search":
        pytest.importorskip("faiss", reason="pip install -e '.[search]'")
    monkeypatch.setitem(os.environ, "REGIONMED_MODEL", str(model_folder))
    monkeypatch.setitem(os.environ, "REGIONMED_WORK", str(tmp_path / "work"))
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
