"""The article's claims, a module for each of its sections; `claims.py` runs them all.

Each function takes the command line's options and returns rows of the table, made by `claim`.
"""

from __future__ import annotations


def claim(text: str, expected: str, measured: str, width: str, agrees: bool | str) -> dict:
    """Return a row of the table."""
    if not isinstance(agrees, str):
        agrees = "yes" if agrees else "no"
    return {
        "claim": text,
        "expected": expected,
        "measured": measured,
        "95% interval": width,
        "agrees": agrees,
    }


def close(text: str, expected: float, mean: float, half: float, digits: int = 4) -> dict:
    """Return a row that agrees within twice the interval's half-width, or within 1%.

    Twice, as with so many rows some would miss their interval by chance.
    """
    tolerance = max(2 * half, 0.01 * abs(expected), 1e-9)
    low, high = mean - half, mean + half
    return claim(
        text,
        f"{expected:.{digits}f}",
        f"{mean:.{digits}f}",
        f"{low:.{digits}f} to {high:.{digits}f}",
        bool(abs(mean - expected) <= tolerance),
    )
