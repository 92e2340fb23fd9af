"""WebDataset: OUT/SPLIT-00000.tar ..., a sample as KEY.jpg (or .png ...) and KEY.json, in the order of the corpus."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.export_files import fields_without_image, image_suffix

DEFAULT_TAR_MEGABYTES = 512
_BLOCK = 512  # bytes: a tar file pads header and content to whole blocks


class WebDatasetWriter:
    """Writes the tar files; equal corpora give equal bytes, since the headers hold no time and no user.

    Args:
        folder: where they go.
        tar_megabytes: a sample that would make its tar larger begins a new one.
    """

    def __init__(self, folder: Path, tar_megabytes: int = DEFAULT_TAR_MEGABYTES) -> None:
        self.folder, self.max_bytes = folder, tar_megabytes * 1_000_000
        self._tar: tarfile.TarFile | None = None
        self._num_bytes = 0
        self._num_tars: dict[str, int] = {}
        self._num_samples: dict[str, int] = {}

    def add(self, split: str, row: dict[str, Any]) -> None:
        """Nothing; writes a sample: the image file as it came, and everything else as JSON."""
        number = self._num_samples.get(split, 0)
        self._num_samples[split] = number + 1
        content = json.dumps(fields_without_image(row), ensure_ascii=False).encode()
        members = {image_suffix(row): row["image"]["bytes"], ".json": content}
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        if number == 0 or self._num_bytes + size > self.max_bytes:
            self._begin(split)
        assert self._tar is not None, "a sample begins a tar file"
        for suffix, data in members.items():
            header = tarfile.TarInfo(f"{split}-{number:08d}{suffix}")  # user, group, time: all zero or empty
            header.size, header.mode = len(data), 0o644
            self._tar.addfile(header, io.BytesIO(data))
        self._num_bytes += size

    def finish(self) -> list[str]:
        """No line: the format holds everything."""
        self.close()
        return []

    def close(self) -> None:
        """Nothing; closes the last tar file."""
        if self._tar is not None:
            self._tar.close()

    def _begin(self, split: str) -> None:
        """Nothing; closes the tar file and begins the split's next one."""
        self.close()
        number = self._num_tars.get(split, 0)
        self._num_tars[split] = number + 1
        path = self.folder / f"{split}-{number:05d}.tar"
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  (`close` closes it)
        self._num_bytes = 2 * _BLOCK  # the end of the archive
