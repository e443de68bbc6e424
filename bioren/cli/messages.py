"""What the commands say: lines, warnings and errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

__all__ = ["clear_errors", "speaker"]


def speaker(quiet: bool) -> Callable[[str], None]:
    """Return what prints a line, or nothing at all."""
    return (lambda text: None) if quiet else typer.echo


@contextmanager
def clear_errors(quiet: bool) -> Iterator[None]:
    """Turn what a user can repair into one message and exit code 1, warnings into one line."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        # Other packages' announcements to their callers are not for users.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)
        try:
            yield
        except (KeyError, ValueError, ArithmeticError, OSError, MemoryError) as error:
            # str() of a KeyError would quote the message.
            text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
            typer.echo(f"Error: {text or type(error).__name__}", err=True)
            raise typer.Exit(1) from error
