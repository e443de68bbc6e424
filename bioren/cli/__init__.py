"""The command line."""

from bioren.cli.commands import app

__all__ = ["app"]
