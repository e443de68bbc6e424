"""Files, and folders that stand for one, that are either whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder", "atomic_write", "check_target"]


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


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well.

    As `atomic_write`, for stores of many files, such as ``.zarr``.  One that is replaced is moved
    aside first, and back if the new one cannot be moved there.

    Raises
    ------
    FileExistsError
        `path` exists, and `overwrite` is false; or it is a file.
    OSError
        The folder that it is in does not exist or cannot be written.
    """
    if path.is_dir() and not overwrite:
        raise FileExistsError(f"{path} exists already.")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: name a folder, or another name.")
    path = path.resolve()
    if not path.parent.is_dir():
        msg = f"{path.parent} is not a folder: make it first, or choose another."
        raise FileNotFoundError(msg)
    token = secrets.token_hex(4)
    temporary, aside = (path.with_name(f".bioren-{token}{end}") for end in (path.suffix, ".old"))
    try:
        temporary.mkdir()
    except OSError as error:
        msg = f"{path.parent} cannot be written ({error.strerror}): choose another folder."
        raise type(error)(msg) from error
    try:
        yield temporary
        if path.exists():
            path.replace(aside)
        try:
            temporary.replace(path)
        except OSError:
            if aside.exists():
                aside.replace(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
