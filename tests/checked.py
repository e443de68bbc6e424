"""Shapes of arrays, checked while the tests run."""

import importlib
import inspect
import pkgutil
import re
import sys
from collections import Counter
from functools import wraps
from typing import get_type_hints

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook, jaxtyped

import bioren

#: Where arrays have known shapes.  What reads a user's data or files checks them by itself.
MODULES = (
    "bioren.arrays",
    "bioren.effects",
    "bioren.network",
    "bioren.reference",
    "bioren.model.fitted",
    "bioren.model.fitting",
)

#: Whole numbers are numbers, and so are those of NumPy.
CONF = BeartypeConf(
    hint_overrides=FrozenDict(
        {int: int | np.integer, float: float | int | np.floating | np.integer}
    )
)

#: In each test so many calls of a function are checked, as all would take long.
CALLS = 5

#: Calls in the present test.
calls = Counter()

#: Functions that were checked often enough.
spared = []


def typechecked(function):
    """Return a function that checks its arguments and what it returns."""
    if "<locals>" in function.__qualname__:
        return function  # made anew at each call: to make it check takes longer than it runs
    # beartype takes Self for a type within classes that it decorates as a whole.
    function.__annotations__ = {
        name: object if re.search(r"\bSelf\b", str(hint)) else hint
        for name, hint in function.__annotations__.items()
    }
    checked = beartype(function, conf=CONF)
    key = object()

    @wraps(function)
    def some_checked(*args, **kwargs):
        calls[key] += 1
        if calls[key] == CALLS + 1:
            _spare(function)
        return (checked if calls[key] <= CALLS else function)(*args, **kwargs)

    return some_checked


def check_anew():
    """Begin to count calls, as each test does."""
    calls.clear()
    while spared:
        spared.pop().__no_type_check__ = False


def _spare(function):
    """Have jaxtyping call a function right away: what it does around each call takes its time."""
    found = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    for of in ("fget", "func", "__func__"):  # of properties and class methods
        found = getattr(found, of, found)
    if inspect.isfunction(found):
        found.__no_type_check__ = True
        spared.append(found)


def check_shapes():
    """Have all functions of `MODULES` check what they are given and return."""
    install_import_hook(MODULES, "checked.typechecked")


def check_tuples():
    """Have named tuples check what they are made of; the hook knows classes, but not these."""
    for found in pkgutil.walk_packages(bioren.__path__, "bioren."):
        if not found.name.startswith(MODULES):
            continue
        for cls in vars(importlib.import_module(found.name)).values():
            if inspect.isclass(cls) and cls.__module__ == found.name and hasattr(cls, "_fields"):
                cls.__new__.__annotations__ = get_type_hints(cls)
                cls.__new__ = jaxtyped(cls.__new__, typechecker=typechecked)
