"""A run on a built corpus as its user starts it: no frames are prepared, the samples come in the order of the files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

from tiny_corpora import rows_of, write_corpus

from regionmed_clip.processing.corpus.sources.phantom import PhantomSource

LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "train/accelerate/cpu.yaml", "train/pretrain.py"]
SHORT = ["stages.global.steps=3", "stages.region.steps=3", "stages.joint.steps=2", "evaluation.tasks=[retrieval]"]


def test_a_run_on_a_built_corpus_trains_evaluates_and_names_its_revision(repository, tmp_path):
    source = PhantomSource(num_train=60, num_test=16)
    rows = {split: rows_of(source.records(split)) for split in source.splits()}
    corpus = write_corpus(tmp_path / "corpus", rows, rows_of_shard=25, rows_of_group=8)
    output_dir = tmp_path / "run"
    recipe = ["--recipe", "train/recipes/smoke.yaml", "--output_dir", str(output_dir), f"data={corpus.folder}"]
    command = [sys.executable, *LAUNCH, *recipe, *SHORT]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "preparing train images" not in finished.stderr
    results = json.loads((output_dir / "results.json").read_text())
    assert {result["data_revision"] for result in results} == {corpus.revision}
    rows_of_log = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    names = [row["image_id"] for row in corpus.rows("train", columns=["image_id"])]
    for step in range(3):  # the recipe's global batch is 16
        joined = "\n".join(names[16 * step : 16 * (step + 1)])
        assert rows_of_log[step]["sample_ids_sha256"] == hashlib.sha256(joined.encode()).hexdigest()
    assert len(rows_of_log) == 8
