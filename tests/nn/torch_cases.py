"""torch's own cases of batch normalization, for layers that take its place.

They are in `torch.testing._internal.common_modules`: arguments of the constructor and an input.
"""

import sys
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any

import hypothesis
import pytest
import torch
from torch import nn

from bioren.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BySamples,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    StepLimits,
    SyncBatchRenorm,
)

# Batch normalization only in the first step, so that three steps see the limits move.
SOON = StepLimits(((1, 1.5, 1.0), (2, 3.0, 5.0)))
OPTIONS = {
    "default": {},
    "limits": {"limits": (3.0, 5.0)},
    "debiased": {"limits": (3.0, 5.0), "initial": "debiased"},
    "std": {"limits": (3.0, 5.0), "moving": "std"},
    "learned": {"limits": (3.0, 5.0), "mixing": "learned"},
    "averages": {"limits": (3.0, 5.0), "average_backward": 4},
    "no bias": {"limits": SOON, "bias": False},
    "rows": {"limits": BySamples(StepLimits(((1, 1.5, 1.0), (9, 3.0, 5.0))))},
}
# In one process it does as the others do; it cannot have averages.
OF_SYNC = ["limits", "learned", "rows"]
PLAIN = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
RENORM = {"1d": BatchRenorm1d, "2d": BatchRenorm2d, "3d": BatchRenorm3d, "sync": SyncBatchRenorm}
LAZY = {
    "lazy 1d": LazyBatchRenorm1d,
    "lazy 2d": LazyBatchRenorm2d,
    "lazy 3d": LazyBatchRenorm3d,
}


@dataclass(frozen=True)
class Case:
    """A case of torch for a layer of ours; as a context it says which one it was that failed."""

    name: str
    kind: type[nn.Module]
    plain_kind: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: torch.Tensor = field(repr=False)

    def layer(self, **more: Any) -> nn.Module:
        """Return our layer, with `more` arguments given by keyword."""
        args = self.args[1:] if self.kind in LAZY.values() else self.args
        return self.kind(*args, **{**self.kwargs, **more})

    def plain(self, **more: Any) -> nn.Module:
        """Return torch's layer with torch's arguments."""
        layer = self.plain_kind(*self.args, **more)
        if not self.kwargs.get("bias", True):  # older than that argument
            layer.register_parameter("bias", None)
        return layer

    @property
    def tracks(self) -> bool:
        return len(self.args) < 5 or self.args[4]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"In torch's case {self.name}: {self.args}, {self.kwargs}.")


def settings(kinds, options=OPTIONS):
    """Return pytest's parameters (kind, options)."""
    return [
        pytest.param((kind, OPTIONS[option]), id=f"{kind}-{option}")
        for kind in kinds
        for option in options
        if kind != "sync" or option in OF_SYNC
    ]


def cases(kind, options):
    """Return torch's cases for a layer of ours, with inputs in double precision."""
    layer = {**RENORM, **LAZY}[kind]
    return [
        Case(
            f"{dims} {given.desc or 'as it is'}",
            layer,
            PLAIN[dims],
            given.constructor_input.args,
            {**given.constructor_input.kwargs, **options},
            given.forward_input.args[0],
        )
        for dims in (PLAIN if kind == "sync" else [kind[-2:]])
        for given in _ask(dims, "module_inputs_func")
        if not (options.get("mixing") == "learned" and given.desc == "not_tracking_stats")
    ]


def failures(kind, options):
    """Return torch's cases that have to fail, each with the type of its error."""
    found = [
        (dims, number, given)
        for dims in (PLAIN if kind == "sync" else [kind[-2:]])
        for number, given in enumerate(_ask(dims, "module_error_inputs_func"))
    ]
    if not found:
        pytest.skip("this torch has no batch normalization that has to fail")
    return [
        (
            Case(
                f"{dims} failure {number}",
                {**RENORM, **LAZY}[kind],
                PLAIN[dims],
                given.module_error_input.constructor_input.args,
                {**given.module_error_input.constructor_input.kwargs, **options},
                given.module_error_input.forward_input.args[0],
            ),
            given.error_type,
        )
        for dims, number, given in found
    ]


def _ask(dims, name):
    (info,) = (info for info in _modules().module_db if info.module_cls is PLAIN[dims])
    function = getattr(info, name)
    if function is None:
        return []
    return function(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)


@cache
def _modules():
    """Import torch's cases without the rest of what that import does to this process."""
    pytest.importorskip("expecttest", reason="torch's module tests need expecttest")
    name = "torch.testing._internal.common_modules"
    with pytest.MonkeyPatch.context() as kept:
        # In older versions it takes pytest's command line for its own.
        kept.setattr(sys, "argv", sys.argv[:1])
        # It forbids all flags of torch.backends, and wraps calls of scripts.
        kept.setattr(torch.backends, "disable_global_flags", lambda: None)
        for script in (torch._C.ScriptFunction, torch._C.ScriptMethod):
            kept.setattr(script, "__call__", script.__call__)
        # It has hypothesis try a tenth as many examples.
        hypothesis.settings.register_profile("before", hypothesis.settings())
        try:
            return pytest.importorskip(name, reason="this torch comes without its module tests")
        finally:
            hypothesis.settings.load_profile("before")
