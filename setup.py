"""Installs RegionMed-CLIP: the folders of the checkout under import names that collide with nobody's."""

from pathlib import Path

from setuptools import setup

# Every sub-package is listed, or the wheel loses it; tests/test_layout.py compares this map with the tree.
# `regionmed_clip` is a namespace without an `__init__.py`: nothing called `train` or `eval` reaches site-packages.
FOLDER_OF_IMPORT_NAME = {
    "modeling_regionmed_clip": "modeling_regionmed_clip",  # already unique: installs under its own name
    "regionmed_clip.processing": "processing",
    "regionmed_clip.processing.corpus": "processing/corpus",
    "regionmed_clip.processing.corpus.phantoms": "processing/corpus/phantoms",
    "regionmed_clip.processing.corpus.sources": "processing/corpus/sources",
    "regionmed_clip.demo": "demo",
    "regionmed_clip.train": "train",
    "regionmed_clip.eval": "eval",
    "regionmed_clip.eval.baselines": "eval/baselines",
    "regionmed_clip.eval.benchmarks": "eval/benchmarks",
    "regionmed_clip.eval.metrics": "eval/metrics",
    "regionmed_clip.eval.metrics.accuracy": "eval/metrics/accuracy",
    "regionmed_clip.eval.metrics.average_precision": "eval/metrics/average_precision",
    "regionmed_clip.eval.metrics.balanced_accuracy": "eval/metrics/balanced_accuracy",
    "regionmed_clip.eval.metrics.box_recall": "eval/metrics/box_recall",
    "regionmed_clip.eval.metrics.brier_score": "eval/metrics/brier_score",
    "regionmed_clip.eval.metrics.contrast_to_noise_ratio": "eval/metrics/contrast_to_noise_ratio",
    "regionmed_clip.eval.metrics.expected_calibration_error": "eval/metrics/expected_calibration_error",
    "regionmed_clip.eval.metrics.f1_at_threshold": "eval/metrics/f1_at_threshold",
    "regionmed_clip.eval.metrics.macro_auroc": "eval/metrics/macro_auroc",
    "regionmed_clip.eval.metrics.mean_iou": "eval/metrics/mean_iou",
    "regionmed_clip.eval.metrics.mean_reciprocal_rank": "eval/metrics/mean_reciprocal_rank",
    "regionmed_clip.eval.metrics.pointing_game": "eval/metrics/pointing_game",
    "regionmed_clip.eval.metrics.recall_at_k": "eval/metrics/recall_at_k",
    "regionmed_clip.eval.search": "eval/search",
    "regionmed_clip.eval.studies": "eval/studies",
    "regionmed_clip.eval.tasks": "eval/tasks",
    "regionmed_clip.model_cards": "model_cards",
    "regionmed_clip.model_cards.export": "model_cards/export",
}
DATA_FILES_OF_IMPORT_NAME = {
    "regionmed_clip.demo": ["*.md", "*.txt", "*.js", "*.css"],
    "regionmed_clip.eval": ["page/*.j2", "page/*.css"],
    "regionmed_clip.train": ["recipes/*.yaml", "accelerate/*.yaml"],
    "regionmed_clip.model_cards": ["templates/*.jinja", "facts/*.yaml"],
    "regionmed_clip.processing.corpus": ["templates/*.jinja"],
}

EXTRAS = {
    "test": ["pytest>=8.4", "pytest-xdist>=3.6", "hypothesis>=6.100", "pydicom>=3", "nibabel>=5"],
    "demo": ["gradio>=6.31,<7", "pydicom>=3", "nibabel>=5"],
    "dicom": ["pydicom>=3", "nibabel>=5"],
    "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
    "search": ["faiss-cpu>=1.9"],
    "browser": ["playwright>=1.50"],  # tests of the demo; they also want Debian's chromium
    "notebooks": ["nbclient>=0.10", "ipykernel>=6.29"],
}
EXTRAS["dev"] = [*EXTRAS["test"], "ruff>=0.12", "pyright[nodejs]>=1.1.400"]
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})

setup(
    name="regionmed-clip",
    version="0.1.0",
    description="A region-aware contrastive model for medical images and text",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=list(FOLDER_OF_IMPORT_NAME),
    package_dir=FOLDER_OF_IMPORT_NAME,
    package_data=DATA_FILES_OF_IMPORT_NAME,
    install_requires=[
        "torch>=2.6",
        "transformers>=5.20,<6",
        "datasets>=4",
        "accelerate>=1.10",
        "peft>=0.18",
        "evaluate>=0.4.6",
        "huggingface_hub>=1",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "torchdata>=0.11",
        "numpy>=1.26",
        "scikit-learn>=1.5",
        "pyarrow>=17",
        "psutil>=5.9",
        "pillow>=11",
        "pyyaml>=6",
        "rich>=13.7",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "regionmed-corpus = regionmed_clip.processing.corpus.command_line:main",
            "regionmed-eval = regionmed_clip.eval.run:main",
            "regionmed-publish = regionmed_clip.model_cards.publish:main",
            "regionmed-search = regionmed_clip.eval.search.search_command:main",
            "regionmed-export = regionmed_clip.model_cards.export.export_command:main",
        ]
    },
)
