"""docs/corpus.md: its commands, from downloaded folders to a trained model, on miniature folders of the same layout."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import write_dicom
from PIL import Image

pytest.importorskip("pydicom", reason="reading DICOM needs pydicom: pip install -e '.[dicom]'")

NUM_TRAIN, NUM_TEST, NUM_RSNA = 20, 4, 24
MARKER = "<!-- tests/processing/corpus/test_corpus_page.py runs these commands"
VINDR_CLASSES = "Cardiomegaly,Pleural effusion,Other diseases,No finding"


def film(seed):
    """(48, 40) uint16 noise of 12 bits: a film that is near to no other."""
    return np.random.default_rng(seed).integers(0, 4096, (48, 40), dtype=np.uint16)


def write_vindr(root):
    """Three readers box an effusion in every even training image and nothing in the odd ones."""
    train = [f"{k:032x}" for k in range(NUM_TRAIN)]
    test = [f"{k + 1000:032x}" for k in range(NUM_TEST)]
    boxes, labels = [], []
    for number, name in enumerate(train):
        for reader in ("R8", "R9", "R10"):
            is_sick = number % 2 == 0
            boxes.append(f"{name},{reader},{'Pleural effusion,3,4,20,30' if is_sick else 'No finding,,,,'}")
            labels.append(f"{name},{reader},0,{int(is_sick)},0,{int(not is_sick)}")
    folder = root / "annotations"
    folder.mkdir(parents=True)
    box_columns = "class_name,x_min,y_min,x_max,y_max"
    tables = {
        "annotations_train": [f"image_id,rad_id,{box_columns}", *boxes],
        "image_labels_train": [f"image_id,rad_id,{VINDR_CLASSES}", *labels],
        "annotations_test": [f"image_id,{box_columns}", *(f"{name},Cardiomegaly,5,6,29,40" for name in test)],
        "image_labels_test": [
            f"image_id,{VINDR_CLASSES.replace('diseases', 'disease')}",
            *(f"{name},1,0,0,0" for name in test),
        ],
    }
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([*lines, ""]))
    for split, names in (("train", train), ("test", test)):
        for number, name in enumerate(names):
            write_dicom(root / split / f"{name}.dicom", film(number + 100 * (split == "test")), BitsStored=12)


def write_rsna(root):
    labels, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number in range(NUM_RSNA):
        name = f"rsna-{number:04d}"
        is_sick = number % 2 == 0
        labels.append(f"{name},4,5,20,12,1" if is_sick else f"{name},,,,,0")
        classes.append(f"{name},{'Lung Opacity' if is_sick else 'Normal'}")
        pixels = (film(number + 500) >> 4).astype(np.uint8)
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", pixels, ViewPosition="PA")
    (root / "stage_2_train_labels.csv").write_text("\n".join([*labels, ""]))
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join([*classes, ""]))


def commands_of(page):
    """The commands of the block after the marker, without comments."""
    block = re.search(r"```bash\n(.*?)```", page[page.index(MARKER) :], re.DOTALL)
    assert block is not None
    return [line for line in block.group(1).splitlines() if line and not line.startswith("#")]


def test_the_page_leads_from_downloaded_folders_to_an_evaluated_model(tmp_path, repository):
    write_vindr(tmp_path / "vindr")
    write_rsna(tmp_path / "rsna")
    (tmp_path / "mine").mkdir()
    Image.fromarray((film(7777) >> 4).astype(np.uint8)).save(tmp_path / "mine/a.png")
    commands = commands_of((repository / "docs/corpus.md").read_text())
    assert [shlex.split(command)[:2] for command in commands] == [
        ["regionmed-corpus", "build"],
        ["head", "corpora/cxr/quarantine.jsonl"],
        ["regionmed-corpus", "check"],
        ["regionmed-corpus", "stats"],
        ["regionmed-corpus", "leak"],
        ["accelerate", "launch"],
        ["regionmed-eval", "--model"],
    ]
    places = {
        "/data/vindr-cxr": "vindr",
        "/data/rsna": "rsna",
        "/data/my-test-images": "mine",
        "train/pretrain.py": str(repository / "train/pretrain.py"),
        "train/recipes/real_small.yaml": str(repository / "train/recipes/smoke.yaml"),  # a recipe of seconds
    }
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    for command in commands:
        words = [places.get(word, word) for word in shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    for made in ("corpora/cxr-stats/stats.md", "runs/cxr/final/model.safetensors", "runs/cxr/again/results.json"):
        assert (tmp_path / made).stat().st_size > 0, made
    assert (tmp_path / "corpora/cxr/quarantine.jsonl").read_text() == ""
