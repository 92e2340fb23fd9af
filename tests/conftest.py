"""What every test starts from: no network, few threads, caches of its own, and the folder of real data if present."""

import builtins
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE_FOLDER = Path(tempfile.mkdtemp(prefix="regionmed-tests-"))

# Set before anything imports torch, datasets or matplotlib; processes that a test starts inherit all of it.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=str(CACHE_FOLDER / "hf"),
    HF_MODULES_CACHE=str(CACHE_FOLDER / "modules"),
    HF_DATASETS_CACHE=str(CACHE_FOLDER / "datasets"),
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(CACHE_FOLDER / "matplotlib"),
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    GLOO_SOCKET_IFNAME="lo",
)

import hypothesis  # noqa: E402  (the environment above comes first)
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# The same examples in every run, and no deadline: a machine with two shared cores is slow at random.
hypothesis.settings.register_profile("regionmed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("regionmed")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA_FOLDER = Path(os.environ.get("REGIONMED_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


def pytest_unconfigure() -> None:
    """Removes the caches of this run."""
    shutil.rmtree(CACHE_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data_folder() -> Path:
    """The folder of small real sources beside the checkout; tests that need it are skipped where it is absent."""
    if not (REAL_DATA_FOLDER / "README.md").is_file():
        pytest.skip(f"no real development data at {REAL_DATA_FOLDER}; set REGIONMED_REAL_DATA to its folder")
    return REAL_DATA_FOLDER


@pytest.fixture(scope="session")
def smoke_model_folder(tmp_path_factory) -> Path:
    """final/ of a run of the smoke recipe: that in REGIONMED_SMOKE_MODEL, or one trained here, in about 20 s."""
    given = os.environ.get("REGIONMED_SMOKE_MODEL")
    if given:
        return Path(given)
    output_dir = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "train/pretrain.py", "--recipe", "train/recipes/smoke.yaml", "--output_dir"]
    run = subprocess.run([*command, str(output_dir)], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return output_dir / "final"


@pytest.fixture
def hide_package(monkeypatch):
    """A function after which importing the named package fails, as where it was never installed."""
    real_import = builtins.__import__

    def hide(package: str) -> None:
        def refuse(name, *arguments, **options):
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real_import(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide
