"""From a trained folder to a stranger's process and back, by way of a Hub on this machine: once each for two Hubs.

One published model serves all tests of a Hub; the publication and every stranger are processes of their own, so that
this file takes about a minute.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_clients import BLOCK_OUR_PACKAGES, AHub, a_hub, run_python, talking_to
from huggingface_hub.errors import RepositoryNotFoundError

from regionmed_clip.model_cards.golden_outputs import GOLDEN_FILE, read_golden
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.corpus.hub_push import MANIFEST_FILE, Upload, push

# huggingface_hub's own way of sending a large file without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
REPO_ID = "tester/regionmed-clip"
STRANGER = f"""{BLOCK_OUR_PACKAGES}
import json
from transformers import AutoModel, AutoProcessor, pipeline
import torch
from PIL import Image

name, revision, golden = sys.argv[1:]
golden = json.loads(open(golden).read())
told = {{"trust_remote_code": True, "revision": revision}}
model = AutoModel.from_pretrained(name, **told).eval()
processor = AutoProcessor.from_pretrained(name, **told)
image = Image.frombytes("RGB", golden["size"], bytes.fromhex(golden["hex"]))
with torch.inference_mode():
    inputs = processor(images=image, text=golden["texts"], boxes=[golden["boxes"]], region_text=golden["region_texts"])
    output = model(**inputs)
classify = pipeline("zero-shot-image-classification", model=name, **told)
labels = [answer["label"] for answer in classify(image, candidate_labels=golden["texts"], hypothesis_template="{{}}")]
answers = {{key: output[key].tolist() for key in ("logits_per_image", "region_embeds", "fused_image_embeds")}}
print(json.dumps({{**answers, "labels": sorted(labels)}}))
"""


@dataclass(frozen=True)
class Published:
    """A model on a Hub: the folder it came from, what publishing it printed, its commit, a stranger's home."""

    hub: AHub
    final: Path
    printed: str
    commit: str
    home: Path

    def asked(self, revision: str, **changes: str) -> subprocess.CompletedProcess:
        """A stranger's process that loads the revision and answers about the golden picture."""
        golden = read_golden(self.final / GOLDEN_FILE)
        pixels = {"size": golden.image.shape[1::-1], "hex": golden.image.numpy().tobytes().hex()}
        pixels |= {"texts": golden.texts, "region_texts": golden.region_texts, "boxes": golden.boxes.tolist()}
        (self.home / "golden.json").write_text(json.dumps(pixels))
        environment = self.hub.environment(self.home, **changes)
        return run_python(STRANGER, environment, REPO_ID, revision, str(self.home / "golden.json"))

    def answers_as_published(self, asked: subprocess.CompletedProcess) -> bool:
        """Whether the stranger got what the model answered where it was published; bit for bit."""
        assert asked.returncode == 0, asked.stderr[-3000:]
        told = json.loads(asked.stdout.splitlines()[-1])
        golden = read_golden(self.final / GOLDEN_FILE)
        assert told.pop("labels") == sorted(golden.texts)
        return all(values == golden.outputs[name].tolist() for name, values in told.items())


@pytest.fixture(scope="module")
def final(model, processor, tmp_path_factory):
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


@pytest.fixture(scope="module", params=["own", "independent"])
def published(request, final, repository, tmp_path_factory):
    """The tiny model, published by the command itself."""
    home = tmp_path_factory.mktemp("home")
    with a_hub(request.param, repository) as hub:
        command = [sys.executable, "-m", "regionmed_clip.model_cards.publish", "--model", str(final)]
        run = subprocess.run(
            [*command, "--repo-id", REPO_ID, "--tag", "v1.0"], env=hub.environment(home), cwd=home,
            capture_output=True, text=True, timeout=480,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        with talking_to(hub):
            commit = hub.api().repo_info(REPO_ID).sha
        yield Published(hub, final, run.stdout, commit, home)


def test_it_says_what_was_done_and_how_to_load_it(published):
    assert "rehearsed without our packages: transformers" in published.printed
    assert f"({'private'}), commit {published.commit}" in published.printed
    assert f'AutoModel.from_pretrained("{REPO_ID}", revision="v1.0", trust_remote_code=True)' in published.printed


def test_it_is_one_commit_in_a_private_repository(published):
    with talking_to(published.hub):
        api = published.hub.api()
        info = api.repo_info(REPO_ID)
        assert info.private
        assert info.pipeline_tag == "zero-shot-image-classification"
        assert len(api.list_repo_commits(REPO_ID, revision="v1.0")) == 2  # the Hub's own first one, and ours
        names = set(api.list_repo_files(REPO_ID, revision="v1.0")) - {".gitattributes", MANIFEST_FILE}
        assert names == {p.relative_to(published.final).as_posix() for p in published.final.rglob("*") if p.is_file()}


def test_a_stranger_loads_it_by_name_and_later_without_the_hub(published):
    assert published.answers_as_published(published.asked("main"))
    without = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert published.answers_as_published(published.asked("main", **without))


def test_a_second_push_does_not_reach_who_pinned_the_first(published):
    changed = shutil.copytree(published.final, published.home / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "roi_mode": "maskpool"}))
    files = {path.relative_to(changed).as_posix(): path for path in changed.rglob("*") if path.is_file()}
    with talking_to(published.hub):
        second = push(Upload(repo_id=REPO_ID, repo_type="model", files=files, message="Another mode"))
    assert second.has_changed
    assert second.commit != published.commit
    assert published.answers_as_published(published.asked(published.commit))


def test_nobody_without_a_token_gets_it(published):
    with talking_to(published.hub, None), pytest.raises(RepositoryNotFoundError):
        published.hub.api(None).repo_info(REPO_ID)
    with talking_to(published.hub, None), pytest.raises(RepositoryNotFoundError):
        published.hub.api(None).hf_hub_download(REPO_ID, "config.json", local_dir=published.home / "stranger")


def test_a_snapshot_checks_itself(published):
    with talking_to(published.hub):
        folder = published.hub.api().snapshot_download(REPO_ID, revision="v1.0", local_dir=published.home / "copy")
    environment = published.hub.environment(published.home, HF_HUB_OFFLINE="1")
    command = [sys.executable, str(Path(folder) / "check_installation.py")]
    run = subprocess.run(command, env=environment, cwd=published.home, capture_output=True, text=True, timeout=480)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "outputs alike; greatest difference 0" in run.stdout
