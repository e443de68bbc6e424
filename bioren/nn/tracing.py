"""Whether code runs on values or is only looked at by a compiler or a function transform."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_readable", "is_traced"]


def is_traced() -> bool:
    """Return whether `torch.compile`, an export or a transform of `torch.func` is at work."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_readable(tensor: Tensor) -> bool:
    """Return whether the values can be read at once, by NumPy too, without holding anything up."""
    return tensor.is_cpu and type(tensor) is Tensor and not is_traced()
