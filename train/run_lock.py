"""One run at a time in an OUTPUT_DIR: a lock that its owner's death gives back.

It is a record lock of the operating system (fcntl), not the file: `kill -9` and a crash free it, processes that the
owner has forked do not hold it, and the file, which stays, only tells who the owner was. On NFS the server keeps such
locks for all its machines, and takes that of a dead machine back after its lease (90 s by default). A file system
without locks (some mounts of Lustre: its option `flock`) is told in a warning, and the run goes on unguarded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from datetime import datetime
from pathlib import Path

LOCK_NAME = "run.lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """Holds `folder` for this process from its making to `release` or the process's end.

    Raises:
        ValueError: if another process holds it; the message names process and host.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK_NAME
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._explain(folder, error)
        else:
            self._sign()

    def _explain(self, folder: Path, error: OSError) -> None:
        if error.errno in TAKEN:
            owner = self._path.read_text(encoding="utf-8").strip() or "an unknown process"
            self._file.close()
            raise ValueError(
                f"--output_dir {str(folder)!r} is in use by {owner}; only one run may write there. Wait for it, "
                "end it, or name another --output_dir."
            ) from error
        if error.errno not in UNSUPPORTED:
            self._file.close()
            raise error
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}); nothing keeps a second run from writing "
            "there at the same time.",
            stacklevel=3,
        )

    def _sign(self) -> None:
        self._file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        self._file.flush()

    def release(self) -> None:
        """Frees the folder."""
        self._file.close()
