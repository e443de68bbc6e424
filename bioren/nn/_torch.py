"""What torch does not say in public: who is looking at the code, and what is saved of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

__all__ = [
    "backward_is_running",
    "is_readable",
    "is_traced",
    "leaf_of",
    "native_kernels_serve",
    "saved_for_backward",
    "saved_tensors_are_hooked",
]

_PLAIN = (Tensor, nn.Parameter)
# Since torch 2.8; before, what is saved may always be hooked into.
_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)


def is_traced() -> bool:
    """Return whether `torch.compile`, an export or a transform of `torch.func` is at work."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_readable(tensor: Tensor) -> bool:
    """Return whether the values can be read at once, by NumPy too, without holding anything up."""
    return tensor.is_cpu and type(tensor) is Tensor and not is_traced()


def native_kernels_serve(input: Tensor) -> bool:
    """Return whether torch's kernels of batch normalisation can be called one by one.

    They take plain tensors on a CPU or an NVIDIA or AMD GPU, and are opaque to a compiler, to
    function transforms and to derivatives in forward mode.
    """
    return (
        (input.is_cpu or input.is_cuda)
        and type(input) in _PLAIN
        and not is_traced()
        and forward_ad._current_level < 0
    )


def backward_is_running() -> bool:
    """Return whether autograd is at work on this thread, so that a forward pass is a second one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def saved_tensors_are_hooked() -> bool:
    """Return whether somebody, such as activation checkpointing, replaces what autograd saves."""
    return _hooks(False) is not None


def saved_for_backward(*terms: Tensor) -> tuple[Tensor, ...]:
    """Return `terms`; compiled code saves them instead of making them again in the backward pass.

    A compiler that makes them again from the running statistics finds these already moved on
    (pytorch issue 197039), and the gradient is silently wrong.  What a concatenation returns is
    never made again.
    """
    if not torch.compiler.is_compiling():
        return terms
    return torch.stack(terms).unbind()


def leaf_of(layer: nn.Module, input: object, *others: object) -> Tensor | None:
    """Return the call of `layer` as one node of a graph, if `torch.fx` is tracing; else None.

    torch's own layers are such leaves.  What they do depends on values, which a trace lacks.
    """
    if not isinstance(input, fx.Proxy):
        return None
    tracer = input.tracer
    name = tracer.path_of_module(layer)  # type: ignore[attr-defined]
    given = tuple(other for other in others if other is not None)
    return cast("Tensor", tracer.create_proxy("call_module", name, (input, *given), {}))
