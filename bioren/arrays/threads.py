"""Threads of the linear algebra beneath NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["with_one_blas_thread"]

P = ParamSpec("P")
T = TypeVar("T")


def with_one_blas_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of many small matrix products, which more threads only slow down.

    OpenBLAS keeps its threads spinning between products.  Where other processes want the same
    cores, two threads took two to three times the processor time of one for the same result.
    """

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with threadpool_limits(1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
