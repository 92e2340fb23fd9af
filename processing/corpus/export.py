"""`regionmed-corpus export`: a built corpus as COCO JSON, WebDataset tar files or jsonl source folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.export_coco import CocoWriter
from regionmed_clip.processing.corpus.export_folder import FolderWriter
from regionmed_clip.processing.corpus.export_webdataset import DEFAULT_TAR_MEGABYTES, WebDatasetWriter


class ExportWriter(Protocol):
    """What writes one format into a folder."""

    def add(self, split: str, row: dict[str, Any]) -> None:
        """Nothing; writes a row."""
        ...

    def finish(self) -> list[str]:
        """Lines on what the format could not hold, after completing the files."""
        ...

    def close(self) -> None:
        """Nothing; lets go of open files, also where the export failed."""
        ...


FORMATS: dict[str, Callable[[Path, int], ExportWriter]] = {
    "coco": lambda folder, _: CocoWriter(folder),
    "webdataset": WebDatasetWriter,
    "folder": lambda folder, _: FolderWriter(folder),
}


def export_corpus(
    corpus: BuiltCorpus,
    output: str | Path,
    export_format: str,
    *,
    splits: Sequence[str] = (),
    tar_megabytes: int = DEFAULT_TAR_MEGABYTES,
    show_progress: bool = True,
) -> list[str]:
    """Lines on what was written and what the format could not hold; the folder is complete or not there at all.

    Args:
        corpus: a built corpus.
        output: a new or empty folder.
        export_format: one of FORMATS.
        splits: some splits of the corpus; empty: all.
        tar_megabytes: of WebDataset, above which a new tar file begins.
        show_progress: a progress bar on stderr.

    Raises:
        ValueError: an unknown format or split, or `output` holds something.
    """
    output = Path(output).absolute()
    if export_format not in FORMATS:
        raise ValueError(f"format is {export_format!r}; it must be one of {', '.join(FORMATS)}. Choose one.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty; an export goes into a new or empty folder. Name another.")
    if tar_megabytes < 1:
        raise ValueError(
            f"a tar file of {tar_megabytes} MB is asked for; it must be at least 1. Leave it out for the default."
        )
    splits = tuple(dict.fromkeys(splits)) or corpus.splits()
    num_images = sum(corpus.num_images(split) for split in splits)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with closing(FORMATS[export_format](temporary, tar_megabytes)) as writer:
            with tqdm(total=num_images, desc="exporting", unit="image", disable=not show_progress) as progress:
                for split in splits:
                    for row in corpus.rows(split):
                        writer.add(split, row)
                        progress.update()
            notes = writer.finish()
        os.replace(temporary, output)  # onto nothing or an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [*notes, f"{num_images:,} images of {', '.join(splits)} written to {output} ({export_format})."]
