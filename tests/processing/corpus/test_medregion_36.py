"""The builder's file under `datasets` 3.6, as a script and as a class, in a Python that does not have our package."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tiny_corpora import small_corpus, write_jsonl_source

from regionmed_clip.processing.corpus.medregion import MedRegion

PYTHON_36 = os.environ.get("REGIONMED_DATASETS36_PYTHON")
SCRIPT = Path(__file__).resolve().parents[3] / "processing" / "corpus" / "medregion.py"
READ = """
import hashlib, importlib.util, json, sys
import datasets
from datasets.distributed import split_dataset_by_node
assert datasets.__version__.startswith("3.6."), datasets.__version__
assert importlib.util.find_spec("regionmed_clip") is None, "this Python must not have the package"
path, config, folder, cache = sys.argv[1:]

def flat(example):
    image = example.pop("image")
    return {**example, "pixels": hashlib.sha256(image.tobytes()).hexdigest(), "mode": image.mode, "size": image.size}

def load(is_stream):
    options = {"trust_remote_code": True, "streaming": is_stream, "cache_dir": cache}
    return datasets.load_dataset(path, config, data_dir=folder, split="train", **options)

stream = load(True)
resumed, reader = load(True), iter(stream)
first = [next(reader)["image_id"] for _ in range(7)]
resumed.load_state_dict(stream.state_dict())
spec = importlib.util.spec_from_file_location("medregion", path)
module = importlib.util.module_from_spec(spec)
sys.modules["medregion"] = module
spec.loader.exec_module(module)
by_class = module.MedRegion(config_name=config, data_dir=folder, cache_dir=cache)
narrow = module.MedRegion(config_name=config, data_dir=folder, cache_dir=cache, columns=["image_id", "caption"])
parts = [[e["image_id"] for e in split_dataset_by_node(load(True), rank=rank, world_size=2)] for rank in range(2)]
print(json.dumps({
    "script_stream": [flat(example) for example in stream],
    "script_stored": [flat(example) for example in load(False)],
    "class_stream": [flat(example) for example in by_class.as_streaming_dataset(split="train")],
    "columns": list(narrow.as_streaming_dataset(split="train")),
    "resumed": first + [example["image_id"] for example in resumed],
    "parts": parts,
    "splits": sorted(by_class.as_streaming_dataset()),
}))
"""

pytestmark = pytest.mark.skipif(
    not PYTHON_36,
    reason="REGIONMED_DATASETS36_PYTHON names no Python with datasets 3.6; medregion.py says how to make one",
)


@pytest.fixture(scope="module", params=["corpus", "jsonl"])
def read_twice(request, tmp_path_factory):
    """(what 3.6 read, what this version reads) of one folder, the latter without texts by template too."""
    root = tmp_path_factory.mktemp("datasets36")
    if request.param == "corpus":
        folder, options = small_corpus(root / "corpus", num_images=20).folder, {}
    else:
        folder, options = write_jsonl_source(root / "demo", 30), {"template_texts": False}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "modules")}
    command = [PYTHON_36, "-W", "ignore", "-c", READ, str(SCRIPT), request.param, str(folder), str(root / "cache")]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    builder = MedRegion(config_name=request.param, data_dir=str(folder), **options)
    return json.loads(done.stdout.splitlines()[-1]), list(builder.as_streaming_dataset(split="train"))


def test_script_and_class_give_the_examples_of_this_version(read_twice):
    import hashlib

    found, here = read_twice
    for example in here:
        image = example.pop("image")
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
        example.update(pixels=pixels, mode=image.mode, size=list(image.size))
    assert len(here) > 10
    assert found["script_stream"] == found["script_stored"] == found["class_stream"] == here


def test_columns_splits_resuming_and_sharing_work_there_too(read_twice):
    found, here = read_twice
    ids = [example["image_id"] for example in here]
    assert found["columns"] == [{"image_id": example["image_id"], "caption": example["caption"]} for example in here]
    assert found["resumed"] == ids
    assert sorted(found["parts"][0] + found["parts"][1]) == sorted(ids)
    assert found["splits"] == ["test", "train"]
