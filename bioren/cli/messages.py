"""What the commands say: lines, warnings and errors, in the words of the command line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

__all__ = ["clear_errors", "in_own_words", "speaker"]

#: Options that stand for arguments of Python's functions, what is given to them, and the commands
#: that have them.
OPTIONS = {
    "batch_key": ("--batch-key", "KEY", ("integrate", "map", "effects")),
    "condition_key": ("--condition", "KEY", ("integrate", "effects")),
    "controls_key": ("--controls", "KEY", ("integrate",)),
    "covariates": ("--covariate", "KEY", ("integrate",)),
    "genes_key": ("--genes-key", "KEY", ("map",)),
    "labels_key": ("--labels", "KEY", ("integrate",)),
    "layer": ("--layer", "NAME", ("integrate", "map")),
    "max_removed": ("--max-shift", "SD", ("integrate",)),
    "n_latent": ("--latent", "N", ("integrate",)),
    "reference": ("--reference", "SAMPLE", ("integrate",)),
    "strength": ("--strength", "S", ("integrate",)),
}
#: An argument with its value: ``layer=...``, ``genes_key='symbol'``, ``max_removed=(r, d)``.
ARGUMENT = re.compile(rf"\b({'|'.join(OPTIONS)})=(\.\.\.|\([^)]*\)|'[^']*'|\"[^\"]*\"|[\w.-]*\w)")


def speaker(quiet: bool) -> Callable[[str], None]:
    """Return what prints a line, or nothing at all."""
    return (lambda text: None) if quiet else typer.echo


def in_own_words(text: str, *, command: str) -> str:
    """Return a message of the functions below with options in the place of their arguments.

    An option that the command does not have is told with one that does.
    """

    def option(found: re.Match[str]) -> str:
        name, what, commands = OPTIONS[found[1]]
        given = found[2]
        value = what if given == "..." or given.startswith("(") else given.strip("'\"")
        other = "" if command in commands else f"bioren {commands[0]} "
        return f"{other}{name} {value}"

    return ARGUMENT.sub(option, text)


@contextmanager
def clear_errors(quiet: bool, *, command: str) -> Iterator[None]:
    """Turn what a user can repair into one message and exit code 1, warnings into one line."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"Warning: {in_own_words(str(message), command=command)}", err=True)

    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        # Other packages' announcements to their callers are not for users.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.showwarning = show
        try:
            yield
        except (KeyError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            # str() of a KeyError would quote the message.
            text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
            said = in_own_words(str(text), command=command) or type(error).__name__
            typer.echo(f"Error: {said}", err=True)
            raise typer.Exit(1) from error
