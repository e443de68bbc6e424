"""The file format: arrays as safetensors, all else as JSON in the same file's header.

Nothing in a file is ever executed (no pickle).  A file carries the name of what it holds, the
version of the format and a SHA-256 of everything in it, and is read whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bioren.files.atomic import atomic_write

__all__ = ["FORMAT_VERSION", "LARGEST", "Stored", "digest", "read", "write"]

#: Of the files that are written.  A change that older versions cannot read raises it by one;
#: older files stay readable, and `tests/formats` keeps one of each version.
FORMAT_VERSION = 2

#: The header's entry that holds the JSON; safetensors allows strings only.
ENTRY = "bioren"

#: No number that bioren writes is as large: beyond, squares and their sums overflow.
LARGEST = 1e15

#: What to do about a file that cannot be used.
OTHER = "Name a file that bioren wrote, or get this one again from where it came from."


class Stored(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    kind
        ``"population"`` or ``"model"``.
    about
        Everything but arrays, as JSON has it.
    arrays
        Arrays by name.
    version
        Of the format.
    """

    kind: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    version: int = FORMAT_VERSION

    def array(self, name: str, *shape: int | None, kind: str = "f") -> np.ndarray:
        """Return an array, checked.

        Parameters
        ----------
        name
            Its name.
        shape
            Its shape; None: any length.
        kind
            ``"f"`` floating point, 32 bits or more, finite and not beyond `LARGEST`; ``"i"``
            integers; ``"b"`` booleans.

        Raises
        ------
        ValueError
            It is missing, or something else.
        """
        found = self.arrays.get(name)
        if found is None:
            raise ValueError(f"The {self.kind} lacks the array {name!r}.")
        fits = len(found.shape) == len(shape) and all(
            wanted in (None, n) for wanted, n in zip(shape, found.shape, strict=True)
        )
        # Half precision overflows where nothing else does.
        if not fits or found.dtype.kind != kind or (kind == "f" and found.itemsize < 4):
            expected = tuple("any" if n is None else n for n in shape)
            msg = (
                f"The array {name!r} has shape {found.shape} and type {found.dtype}, expected "
                f"{expected} and type {kind!r}."
            )
            raise ValueError(msg)
        if not _in_range(found):
            raise ValueError(f"The array {name!r} holds values that are not finite, or too large.")
        return found

    def text(self, name: str) -> str:
        """Return a string of `about`."""
        found = self._entry(name)
        if not isinstance(found, str):
            raise ValueError(f"{name!r} of the {self.kind} should be text, found {found!r:.60}.")
        return found

    def texts(self, name: str) -> list[str]:
        """Return a list of strings of `about`."""
        found = self._entry(name)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{name!r} of the {self.kind} should be a list of names.")
        return found

    def names(self, name: str) -> list[str]:
        """Return a list of different strings of `about`."""
        found = self.texts(name)
        if len(set(found)) < len(found):
            raise ValueError(f"{name!r} of the {self.kind} names something twice.")
        return found

    def number(self, name: str, least: float, most: float = math.inf) -> float:
        """Return a number of `about` that lies in ``[least, most]``."""
        found = self._entry(name)
        number = isinstance(found, int | float) and not isinstance(found, bool)
        if not number or not least <= found <= most or abs(found) > LARGEST:
            msg = f"{name!r} of the {self.kind} should be a number from {least} to {most}"
            raise ValueError(f"{msg}, found {found!r:.60}.")
        return float(found)

    def integer(self, name: str, least: int, most: int = 2**63 - 1) -> int:
        """Return an integer of `about` that lies in ``[least, most]``."""
        found = self._entry(name)
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
            msg = f"{name!r} of the {self.kind} should be an integer from {least} to {most}"
            raise ValueError(f"{msg}, found {found!r:.60}.")
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object of `about`."""
        found = self._entry(name)
        if not isinstance(found, dict):
            raise ValueError(f"{name!r} of the {self.kind} should be an object.")
        return found

    def part(self, prefix: str) -> Stored:
        """Return the arrays whose names begin with ``prefix/``, named without it."""
        start = f"{prefix}/"
        inside = {
            name.removeprefix(start): array
            for name, array in self.arrays.items()
            if name.startswith(start)
        }
        return self._replace(arrays=inside)

    def _entry(self, name: str) -> Any:
        if name not in self.about:
            raise ValueError(f"The {self.kind} says nothing of {name!r}.")
        return self.about[name]


def write(
    path: str | Path,
    kind: str,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    overwrite: bool = False,
) -> None:
    """Write a file, whole or not at all; the same contents give the same bytes.

    Parameters
    ----------
    path
        File to write.
    kind, about, arrays
        See `Stored`.
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    FileExistsError, OSError
        See `bioren.files.atomic.atomic_write`; or the disk is full.
    ValueError
        Some values are not finite: no such file could be read.
    """
    arrays = {name: _plain(array) for name, array in sorted(arrays.items())}
    wrong = [name for name, array in arrays.items() if not _in_range(array)]
    if wrong:
        msg = f"{path} cannot be written: {wrong[0]} of the {kind} is not finite, or too large."
        raise ValueError(msg)
    header = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "sha256": digest(kind, about, arrays),
        "about": about,
    }
    with atomic_write(Path(path), overwrite=overwrite) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(arrays, temporary, metadata={ENTRY: _json(header)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        temporary.chmod(mode)  # safetensors puts a file there that nobody else may read


def read(path: str | Path, kinds: Sequence[str]) -> Stored:
    """Read a file that `write` wrote.

    Parameters
    ----------
    path
        File to read.
    kinds
        What it may hold.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        It is no such file, is damaged or was changed, is of a newer format, or holds something
        else.  Nothing of it is used then.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. {OTHER}")
    try:
        path.open("rb").close()  # safetensors takes a file that may not be read for none
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). {OTHER}") from error
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(ENTRY, "null"))
            version = header.get("format") if isinstance(header, dict) else None
            if type(version) is not int:
                raise ValueError("bioren did not write it")
            # Nothing else is known of a newer version.
            names = file.keys() if 1 <= version <= FORMAT_VERSION else []
            arrays = {name: file.get_tensor(name) for name in names}
        stored = Stored(str(header.get("kind")), header.get("about"), arrays, version)
        checksum = digest(*stored[:3])
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} cannot be read as a file of bioren: it is damaged, cut off or something else"
        raise ValueError(f"{msg} ({error}). {OTHER}") from error
    if not 1 <= version <= FORMAT_VERSION:
        msg = (
            f"{path} is of format {version}, and this version of bioren reads formats up to "
            f"{FORMAT_VERSION}. Update bioren: pip install --upgrade bioren"
        )
        raise ValueError(msg)
    if checksum != header.get("sha256") or not isinstance(stored.about, dict):
        msg = f"{path} was changed after it was written, or damaged: its checksum differs."
        raise ValueError(f"{msg} {OTHER}")
    if stored.kind not in kinds:
        expected = " or a ".join(kinds)
        raise ValueError(f"{path} holds a {stored.kind:.40}, expected a {expected}: name another.")
    return stored


def digest(kind: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of contents, as 64 hexadecimal digits."""
    found = hashlib.sha256(_json([kind, about]).encode())
    for name, array in sorted(arrays.items()):
        plain = _plain(array)
        found.update(_json([name, plain.dtype.str, plain.shape]).encode())
        found.update(plain.tobytes())
    return found.hexdigest()


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array as it lies in a file: row by row, the lowest byte first."""
    return np.asarray(array, order="C", dtype=np.asarray(array).dtype.newbyteorder("<"))


def _in_range(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or float(np.abs(array).max(initial=0)) <= LARGEST


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
