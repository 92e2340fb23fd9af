"""A stub in the place of training."""

import json

import pytest
import yaml


@pytest.fixture
def stub(make_stub):
    """A runner that leaves the tiny untrained model, and the list of the names that it was asked to train."""
    return make_stub()


@pytest.fixture(scope="session")
def make_stub(model, processor):
    """The function that makes a stub."""
    return lambda: _make_stub(model, processor)


def _make_stub(model, processor):
    names = []

    def start(training, data="phantom:num_train=4,num_test=14", steps=1) -> None:
        names.append(training.name)
        training.folder.mkdir(parents=True)
        model.save_pretrained(training.folder / "final")
        processor.save_pretrained(training.folder / "final")
        (training.folder / "recipe.yaml").write_text(yaml.safe_dump({"data": data, "evaluation": {"split": "test"}}))
        row = json.dumps({"stage": "region", "samples_per_s": 8.0}) + "\n"
        (training.folder / "metrics.jsonl").write_text(row * steps)
        training.mark_finished(wall_s=2.0, model_code="c0de")

    return start, names
