"""How error messages name what was possible."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["choices", "listed"]


def choices(where: str, wanted: str, keys: Iterable[Any]) -> str:
    """Say what ``adata.WHERE`` holds, and which of it was probably meant."""
    names = [str(key) for key in keys]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{where} holds: {listed(names)}"


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Return names between commas, cut where they are many."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
