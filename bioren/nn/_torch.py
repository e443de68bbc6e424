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
    """Return whether torch's kernels of batch normalization can be called one by one.

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
    (a known fault: pytorch 197039), and the gradient is silently wrong.  What a concatenation
    returns is not on torch's list of what is made again; with
    ``torch._functorch.config.activation_memory_budget`` below one half, or
    ``aggressive_recomputation``, that list does not count.
    """
    if not torch.compiler.is_compiling():
        return terms
    return torch.stack(terms).unbind()


def leaf_of(layer: nn.Module, *given: Any, **named: Any) -> Tensor | None:
    """Return the call of `layer` as one node of a graph, if `torch.fx` is tracing; else None.

    torch's own layers are such leaves.  What they do depends on values, which a trace lacks.
    """
    proxy = next((x for x in (*given, *named.values()) if isinstance(x, fx.Proxy)), None)
    if proxy is None:
        return None
    tracer = proxy.tracer
    name = tracer.path_of_module(layer)  # type: ignore[attr-defined]
    if not name:
        raise TypeError(
            f"{type(layer).__name__} cannot be traced by itself; trace the network that it is in."
        )
    return cast("Tensor", tracer.create_proxy("call_module", name, given, named))
