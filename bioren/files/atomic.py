"""Files that are either whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "check_target"]


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that could not be written, before any work is done; see `atomic_write`."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: name a file in it.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already.")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{parent} is not a folder: make it first, or choose another.")


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Whether `path` can be written shows on entry, before any work is done.  When the block
    fails, the temporary file is removed and `path` is as it was.  A link stays a link: the file
    that it leads to is replaced.

    Raises
    ------
    FileExistsError
        `path` exists, and `overwrite` is false; or it is a folder.
    OSError
        The folder does not exist or cannot be written.
    """
    check_target(path, overwrite=overwrite)
    path = path.resolve()
    temporary = path.with_name(f".bioren-{secrets.token_hex(4)}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        msg = f"{path.parent} cannot be written ({error.strerror}): choose another folder."
        raise type(error)(msg) from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut might leave less than was there before
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
