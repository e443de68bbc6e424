"""Options that several commands have; those of one command stand with it in `commands`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import typer

__all__ = ["Condition", "Corrected", "Layer", "Overwrite", "Quiet", "one_or_several"]


class Corrected(StrEnum):
    """Genes whose corrected expression is written."""

    all = "all"
    highly_variable = "highly_variable"
    none = "none"


Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that exist.")
]
Layer: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Read log-expression here instead of in X.")
]
Condition: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Column to be studied: warn if it is confounded with the samples."
    ),
]


def one_or_several(names: list[str] | None) -> Any:
    """Return what a repeatable option names: None, one name, or a list of names."""
    return names[0] if names and len(names) == 1 else names or None
