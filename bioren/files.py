"""Files that are either whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Whether `path` can be written shows on entry, before any work is done.  When the block
    fails, the temporary file is removed and `path` is as it was.

    Raises
    ------
    FileExistsError
        `path` exists, and `overwrite` is false.
    OSError
        The folder does not exist or cannot be written.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: make it first, or choose another.")
    descriptor, name = tempfile.mkstemp(
        suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp lets only its owner read; give the file what open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
