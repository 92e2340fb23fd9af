"""Stages the demo as a Hub Space: the files of demo/, examples that are drawn, an index of one model's regions."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from regionmed_clip.eval.saved_models import OWN_KIND, kind_of_folder, load_model
from regionmed_clip.model_cards.stage import put_in_place
from regionmed_clip.processing.corpus.hub_push import (
    CONFIG_FILE,
    MODEL,
    check_repo_id,
    hashes_of,
    hashes_there,
    told_as_value_errors,
)
from regionmed_clip.processing.corpus.phantoms.study import MODALITIES, draw_phantom
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "demo"  # beside model_cards/ in a checkout and when installed
DEMO_SUFFIXES = frozenset({".py", ".js", ".css", ".md", ".txt"})
NUM_EXAMPLES_PER_MODALITY = 1
NUM_INDEX_IMAGES = 160
TILE_SIDE_PX, TILES_PER_ROW = 96, 16
TILE_MARGIN = 0.6  # of the longer side of a region, shown around it
CHECK_TEXT = "pulmonary nodule"  # its embedding tells the demo whether index and model belong together
MAX_LOOKED_AT = 2000  # phantoms, for the examples
BATCH_SIZE = 32
REVISION = re.compile(r"(?:refs/pr/\d+|[A-Za-z0-9][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.-]+)*)")


def stage_space(
    model_folder: str | Path,
    folder: str | Path,
    *,
    model_id: str | None = None,
    revision: str | None = None,
    num_index_images: int = NUM_INDEX_IMAGES,
) -> Path:
    """The folder of the Space, complete or untouched; `python FOLDER/app.py` serves it.

    It holds the files of demo/; example_*.png and examples.json, the first phantoms of the test split that show two
    different findings, one of each modality; index.safetensors, index.json and index.webp, the regions of phantoms of
    the validation split as this model embeds them; and space.json, which says where the model is.

    Args:
        model_folder: a flat folder fresh from `stage_flat_folder`, for it is copied whole. None of its code is run.
        folder: of the Space; one that is there is replaced.
        model_id: ORG/NAME under which the Hub has this model; None: it is copied to model/ of the Space.
        revision: of `model_id`.
        num_index_images: how many phantoms give their regions to the index.

    Raises:
        ValueError: no model of ours in `model_folder`, or what `check_model_on_hub` refuses.
    """
    model_folder, folder = Path(model_folder), Path(folder).absolute()
    if kind_of_folder(model_folder) != OWN_KIND:
        raise ValueError(f"{model_folder} holds a model of another kind; the demo needs a RegionMedClipModel's folder.")
    check_model_on_hub(model_id, revision)
    if num_index_images < 1:
        raise ValueError(f"num_index_images is {num_index_images}; it must be at least 1.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _copy_demo(temporary, model_id)
        _write_json(temporary / "space.json", {"model_id": model_id, "revision": revision})
        _write_examples(temporary)
        _write_index(temporary, model_folder, num_index_images)
        if model_id is None:
            shutil.copytree(model_folder, temporary / "model", ignore=shutil.ignore_patterns("__pycache__"))
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_model_on_hub(model_id: str | None, revision: str | None) -> None:
    """None; ValueError for an id that is no ORG/NAME, a revision that is none, or one without an id."""
    if model_id is not None:
        check_repo_id(model_id)
    if revision is not None and model_id is None:
        raise ValueError(f"revision is {revision!r} without a model_id; name the model on the Hub, or leave it out.")
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise ValueError(f"revision {revision!r} of {model_id} is none; it must be a tag, a branch or a commit.")


def check_model_is_that(model_id: str, revision: str | None, model_folder: Path, *, is_public: bool) -> str:
    """A sentence on what was found: the Hub has the model of `model_folder` under that id and revision.

    Compared are the weights by their hash, and config.json but for the version of transformers that wrote it.

    Raises:
        ValueError: it is not there or this token may not read it, it is another model, or it is private and the Space
            (`is_public`) is not.
    """
    api, told = HfApi(), f"{model_id} at {revision or 'main'}"
    with told_as_value_errors(model_id):
        try:
            info = api.model_info(model_id, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ValueError(
                f"the Hub has no model {told}, or this token may not read it; the Space could not load it. Publish it "
                "first, or leave --model-id out: then the Space holds a copy."
            ) from error
        weights = {path.name: hashes_of(path) for path in sorted(model_folder.glob("model*.safetensors"))}
        found = hashes_there(api, model_id, MODEL, [CONFIG_FILE, *weights], info.sha)
        differing = [name for name, known in weights.items() if found.get(name) not in known]
        if not differing and (CONFIG_FILE not in found or not _is_same_config(api, model_id, info.sha, model_folder)):
            differing = [CONFIG_FILE]
    if differing or not weights:
        raise ValueError(
            f"{model_folder} is not the model {told}: {', '.join(differing) or 'its weights'} differ, and the Space's "
            "index would be of another model than the one it loads. Give the folder that was published, or "
            "--model-revision."
        )
    if info.private and is_public:
        raise ValueError(
            f"{model_id} is private and the Space would be public, so that nobody could load the model in it. Make the "
            "model public, or leave --public out."
        )
    needs = "; it is private: give the Space a secret HF_TOKEN that may read it" if info.private else ""
    return f"the Hub has this very model as {told}{needs}"


def _is_same_config(api: HfApi, model_id: str, revision: str | None, model_folder: Path) -> bool:
    """Whether config.json there says what it says here, but for the version of transformers that wrote it."""
    with tempfile.TemporaryDirectory(prefix="regionmed-publish-") as folder:
        there = Path(api.hf_hub_download(model_id, CONFIG_FILE, revision=revision, local_dir=folder)).read_bytes()
    configs = [json.loads(content) for content in (there, (model_folder / CONFIG_FILE).read_bytes())]
    first, second = ({**config, "transformers_version": None} for config in configs)
    return first == second


def _copy_demo(folder: Path, model_id: str | None) -> None:
    """None; copies the files of demo/, and names the model in the metadata of README.md."""
    for path in sorted(DEMO_FOLDER.iterdir()):
        if path.is_file() and path.suffix in DEMO_SUFFIXES and path.name != "__init__.py":
            shutil.copyfile(path, folder / path.name)
    if model_id is not None:
        readme = folder / "README.md"
        text = readme.read_text(encoding="utf-8").replace("---\n", f"---\nmodels: [{model_id}]\n", 1)
        readme.write_text(text, encoding="utf-8")


def _write_examples(folder: Path) -> None:
    """None; writes the pictures and examples.json."""
    examples = []
    for modality, studies in zip(MODALITIES, _example_studies()):
        for study in studies:
            name = f"example_{len(examples) + 1}_{modality.name.replace(' ', '_').lower()}.png"
            with Image.open(BytesIO(_bytes_of(study))) as picture:
                picture.save(folder / name, optimize=True)
            shown = [
                {"box": list(region.box), "finding": region.finding, "description": region.description}
                for region in study.regions
            ]
            title = modality.name[0].upper() + modality.name[1:]
            examples.append({"file": name, "title": title, "texts": list(modality.findings), "regions": shown})
    _write_json(folder / "examples.json", {"source": "phantoms of regionmed-clip, split test", "examples": examples})


def _example_studies() -> list[list[StudyRecord]]:
    """For each modality its first phantoms of the test split with two or more different findings."""
    found: dict[str, list[StudyRecord]] = {modality.name: [] for modality in MODALITIES}
    for index in range(MAX_LOOKED_AT):
        study = draw_phantom(0, index, split="test")
        studies = found[study.modality]
        if len(studies) < NUM_EXAMPLES_PER_MODALITY and len({region.finding for region in study.regions}) > 1:
            studies.append(study)
        if all(len(studies) == NUM_EXAMPLES_PER_MODALITY for studies in found.values()):
            break
    return list(found.values())


def _write_index(folder: Path, model_folder: Path, num_images: int) -> None:
    """None; writes the embeddings, texts and tiles of the regions of `num_images` phantoms."""
    model, processor = load_model(model_folder)
    embeds: list[np.ndarray] = []
    texts: list[str] = []
    tiles: list[Image.Image] = []
    for studies in _batches([draw_phantom(0, index, split="validation") for index in range(num_images)]):
        pictures = [Image.open(BytesIO(_bytes_of(study))).convert("RGB") for study in studies]
        boxes = [[region.box for region in study.regions] for study in studies]
        inputs = processor(images=pictures, boxes=boxes, window=None)  # 8-bit pictures: a saved window holds not
        with torch.inference_mode():
            regions = model.get_region_features(**inputs).pooler_output.float()  # (B, R, D)
        regions = torch.nn.functional.normalize(regions, dim=-1).numpy()
        for study, picture, rows in zip(studies, pictures, regions):
            embeds.extend(rows[: len(study.regions)])
            texts.extend(region.description or region.finding for region in study.regions)
            tiles.extend(_tile(picture, region) for region in study.regions)
    with torch.inference_mode():
        check = model.get_text_features(**processor.encode_texts([CHECK_TEXT])).pooler_output.float()
    check = torch.nn.functional.normalize(check, dim=-1).numpy()  # (1, D)
    tensors = {"region_embeds": np.stack(embeds).astype(np.float16), "check_embed": check[0]}
    save_file(tensors, folder / "index.safetensors")
    (folder / "index.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    _atlas(tiles).save(folder / "index.webp", quality=80, method=4)
    layout = {"tile_side_px": TILE_SIDE_PX, "tiles_per_row": TILES_PER_ROW, "check_text": CHECK_TEXT}
    facts = {"source": "phantoms of regionmed-clip, split validation", **layout, "texts": texts}
    _write_json(folder / "index.json", facts)


def _batches(studies: Sequence[StudyRecord]) -> Iterator[list[StudyRecord]]:
    """The studies with regions, some at a time."""
    with_regions = [study for study in studies if study.regions]
    yield from (with_regions[i : i + BATCH_SIZE] for i in range(0, len(with_regions), BATCH_SIZE))


def _tile(picture: Image.Image, region: RegionRecord) -> Image.Image:
    """A square of TILE_SIDE_PX around the region, its box outlined; black beyond the picture."""
    x0, y0, x1, y1 = region.box
    half = max(x1 - x0, y1 - y0) * (0.5 + TILE_MARGIN)
    left, top = (x0 + x1) / 2 - half, (y0 + y1) / 2 - half
    scale = TILE_SIDE_PX / (2 * half)
    square = (round(left), round(top), round(left + 2 * half), round(top + 2 * half))
    tile = picture.crop(square).resize((TILE_SIDE_PX, TILE_SIDE_PX), Image.Resampling.BICUBIC)
    outline = [(x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale]
    ImageDraw.Draw(tile).rectangle(outline, outline=(255, 176, 0))
    return tile


def _atlas(tiles: Sequence[Image.Image]) -> Image.Image:
    """All tiles in one picture, TILES_PER_ROW a row."""
    num_rows = -(-len(tiles) // TILES_PER_ROW)
    atlas = Image.new("RGB", (TILES_PER_ROW * TILE_SIDE_PX, num_rows * TILE_SIDE_PX))
    for i, tile in enumerate(tiles):
        atlas.paste(tile, (i % TILES_PER_ROW * TILE_SIDE_PX, i // TILES_PER_ROW * TILE_SIDE_PX))
    return atlas


def _bytes_of(study: StudyRecord) -> bytes:
    assert isinstance(study.image, bytes), "a phantom holds its image"
    return study.image


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
