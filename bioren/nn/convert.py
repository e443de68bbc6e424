"""Whole networks turned from batch normalization to renormalization and back.

Layers change their class and keep everything else: parameters, buffers, hooks, names, and whoever
refers to them.  A subclass of torch's layers becomes a class that adds the same to ours, as long as
it leaves the normalization to torch's ``forward``.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bioren.nn._torch import leaf_of
from bioren.nn.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    _BatchRenorm,
    _LazyBatchRenorm,
)
from bioren.nn.schedules import Limits
from bioren.nn.sync import SyncBatchRenorm, check_shareable

__all__ = ["convert_batchnorm", "convert_sync", "fold_to_batchnorm"]

Network = TypeVar("Network", bound=nn.Module)
Kind = type[_BatchRenorm]

_RENORM: dict[type[nn.Module], Kind] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.LazyBatchNorm1d: LazyBatchRenorm1d,
    nn.LazyBatchNorm2d: LazyBatchRenorm2d,
    nn.LazyBatchNorm3d: LazyBatchRenorm3d,
    nn.SyncBatchNorm: SyncBatchRenorm,
}
_OVER_ROWS = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
_PLAIN: dict[Kind, type[nn.Module]] = {renorm: bn for bn, renorm in _RENORM.items()}


def convert_batchnorm(
    module: Network,
    *,
    limits: Limits | None = None,
    factories: Mapping[type[nn.Module], Callable[[Any], nn.Module]] | None = None,
    strict: bool = True,
    **options: Any,
) -> Network:
    """Turn every batch normalization inside of `module` into Batch Renormalization.

    Weights, statistics, eps, momentum, device, dtype and mode stay as they are, and so does the
    output in evaluation.  (Learned mixing is a new parameter, which an optimizer that exists
    already has to be given.)

    Subclasses of torch's layers are converted, too, if they inherit ``forward``, as parametrized
    layers do, or call ``super().forward``; and so is timm's ``BatchNormAct2d``, with its dropout
    and activation.  Others may compute anything and are left alone, unless `factories` says what
    to do with them.

    torch's usual momentum is 0.1, and stays: it belongs to the network, its learning rates and the
    length of its training.  As the running statistics now lead the training, steadier ones are
    better where a statistic is over few values: in dense networks with minibatches of two to four
    rows the paper's ``momentum=0.01`` is 4 to 10 points of accuracy ahead, in convolutional ones it
    is not (`benchmarks/layers/defaults.py`).

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place.
    limits
        As in `BatchRenorm1d`.  A schedule goes on at the number of batches that a layer has
        seen, so that pretrained layers begin with the last limits.
    factories
        For layers of other classes: what makes a layer's substitute of it.  Batch normalization
        inside of the substitute is converted as well.
    strict
        Whether it is an error if there is nothing to convert.
    **options
        For all layers: momentum, eps, initial, moving, mixing or average_backward, as in
        `BatchRenorm1d`.

    Returns
    -------
    torch.nn.Module
        `module` itself, or its substitute.

    Warns
    -----
    UserWarning
        There are subclasses that are left alone.

    Raises
    ------
    TypeError, ValueError
        `module` is no module; an option is unknown or out of range; there is no batch
        normalization that could be converted.  Then no layer has changed.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> type(convert_batchnorm(model)[1]).__name__
    'BatchRenorm2d'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, received {type(module).__name__}.")
    factories = factories or {}
    substitutes = {
        layer: factories[type(layer)](layer)
        for layer in module.modules()
        if type(layer) in factories
    }
    networks: tuple[nn.Module, ...] = (module, *substitutes.values())
    found = [
        layer
        for network in networks
        for layer in network.modules()
        if _kind_for(type(layer)) is not None
    ]
    if strict and not (found or substitutes):
        raise ValueError(_nothing_found(module))
    BatchRenorm1d(1, limits=limits, **options)
    for layer in found:
        _try_options(layer, {"limits": limits} | options)
    module = _with_substitutes(module, substitutes)
    own = {"momentum", "eps"} & options.keys()  # what batch normalization has as well
    for layer in module.modules():
        kind = _kind_for(type(layer))
        if kind is None:
            continue
        layer.__class__ = _derived(kind, type(layer))
        for name in own:
            setattr(layer, name, options[name])
        layer.set_options(  # type: ignore[operator]
            limits=limits, **{k: v for k, v in options.items() if k not in own}
        )
        layer.count_given_statistics()  # type: ignore[operator]
    _warn_of_others(layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    return module


def convert_sync(module: Network, process_group: dist.ProcessGroup | None = None) -> Network:
    """Turn every Batch Renormalization inside of `module` into the one over all ranks.

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place; batch normalization, subclasses that
        `convert_batchnorm` did not make, and layers that are synchronized already are left alone.
    process_group
        The ranks; None for all.

    Returns
    -------
    torch.nn.Module
        `module` itself.

    Raises
    ------
    ValueError
        A lazy layer does not know its number of channels yet, or a layer averages its backward
        statistics.
    """
    lazy = [layer for layer in module.modules() if isinstance(layer, _LazyBatchRenorm)]
    if lazy:
        msg = "A lazy layer has to see an input before it can be synchronized; pass one first."
        raise ValueError(msg)
    layers = [layer for layer in module.modules() if _made_of(layer)[0] in _OVER_ROWS]
    for layer in layers:
        check_shareable(layer)  # type: ignore[arg-type]
    for layer in layers:
        _, plain = _made_of(layer)
        layer.folds_to = plain
        layer.__class__ = _derived(SyncBatchRenorm, plain)
        layer.process_group = process_group  # type: ignore[assignment]
    _warn_of_others(
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchRenorm) and _made_of(layer)[0] is None
    )
    return module


def fold_to_batchnorm(module: Network) -> Network:
    """Turn every Batch Renormalization inside of `module` into batch normalization.

    For deployment: in evaluation the two are the same, and tools that fuse, quantize or export
    know batch normalization.  What `convert_sync` made becomes what it was before.

    Parameters
    ----------
    module
        Any network, or a single layer.  Changed in place.

    Returns
    -------
    torch.nn.Module
        `module` itself.
    """
    for layer in module.modules():
        kind, plain = _made_of(layer)
        if kind is not None:
            plain = vars(layer).pop("folds_to", plain)
            layer.drop_options()  # type: ignore[operator]
            layer.__class__ = plain
            if not issubclass(plain, nn.SyncBatchNorm):
                vars(layer).pop("process_group", None)
    _warn_of_others(layer for layer in module.modules() if isinstance(layer, _BatchRenorm))
    return module


def _kind_for(origin: type[nn.Module]) -> Kind | None:
    """Return our class in the place of batch normalization `origin`, None if it is something else.

    Not for layers that may compute anything.
    """
    plain = next((base for base in origin.__mro__ if base in _RENORM), None)
    if plain is None:
        return None
    forward: Any = origin.forward
    code = getattr(forward, "__code__", None)
    if forward is plain.forward or _is_timms(forward):
        return _RENORM[plain]
    calls_torch = (
        code is not None
        and "__class__" in code.co_freevars
        and "forward" in code.co_names
        and "batch_norm" not in code.co_names  # on another branch, where it would stay
    )
    return _RENORM[plain] if calls_torch and not _names_itself(origin, plain) else None


def _try_options(layer: Any, options: dict[str, Any]) -> None:
    """Make a small layer of ours with these options, which raises if one is wrong for `layer`."""
    kind: Any = _kind_for(type(layer))
    own = {"eps": layer.eps, "momentum": layer.momentum}
    size = () if issubclass(kind, _LazyBatchRenorm) else (1,)
    kind(*size, track_running_stats=layer.track_running_stats, **own | options)


def _names_itself(origin: type[nn.Module], plain: type[nn.Module]) -> bool:
    """Return whether a method calls ``super(ItsClass, self)``, which no other class can."""
    return any(
        "__class__" in function.__code__.co_freevars and kind.__name__ in function.__code__.co_names
        for kind in origin.__mro__
        if kind not in plain.__mro__
        for name, member in vars(kind).items()
        if name != "__init__"
        for function in _functions_of(member)
    )


def _functions_of(member: object) -> list[types.FunctionType]:
    """Return the functions that a method, a property or a class method consists of."""
    parts = [getattr(member, name, None) for name in ("__func__", "fget", "fset", "fdel")]
    return [part for part in (member, *parts) if isinstance(part, types.FunctionType)]


def _is_timms(forward: Any) -> bool:
    """Return whether this is the forward pass of ``timm.layers.BatchNormAct2d``.

    It calls torch's function, then ``self.drop`` and ``self.act``.
    """
    module, name = (getattr(forward, of, None) or "" for of in ("__module__", "__qualname__"))
    return module.startswith("timm.") and name == "BatchNormAct2d.forward"


def _derived(kind: Any, origin: Any) -> Kind:
    """Return `kind` with what `origin` adds to torch's class, the same class at each call."""
    if origin in _RENORM:
        return kind  # type: ignore[no-any-return]
    if (kind, origin) not in _made:
        _made[kind, origin] = _make(kind, origin)
    return _made[kind, origin]


_made: dict[tuple[Any, Any], Kind] = {}


def _make(kind: Any, origin: Any) -> Kind:
    bases = tuple(
        _derived(kind, base) if issubclass(base, _BatchNorm) else base for base in origin.__bases__
    )
    members = {
        name: value
        for name, value in vars(origin).items()
        if name not in ("__dict__", "__weakref__", "__init_subclass__")
    }
    made = type(origin)(origin.__name__, bases, members | {"made_of": (kind, origin)})
    for name, value in members.items():
        if _functions_of(value):
            setattr(made, name, _of_class(value, made))
    if "forward" in members:
        timms = _is_timms(members["forward"])
        made.forward = _as_leaf(_forward_of_timms(bases[0]) if timms else made.forward)
    made.__reduce__ = lambda layer: (_remade, (kind, origin), layer.__getstate__())
    return made  # type: ignore[no-any-return]


def _of_class(member: Any, owner: type) -> Any:
    """Return a function, property or class method with a ``super()`` that starts at `owner`."""
    if isinstance(member, property):
        parts = (member.fget, member.fset, member.fdel)
        return property(*(None if part is None else _of_class(part, owner) for part in parts))
    if isinstance(member, classmethod | staticmethod):
        return type(member)(_of_class(member.__func__, owner))
    return _function_of_class(member, owner)


def _function_of_class(function: types.FunctionType, owner: type) -> types.FunctionType:
    if "__class__" not in function.__code__.co_freevars:
        return function
    cells = tuple(
        types.CellType(owner) if name == "__class__" else cell
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
    )
    again = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    again.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(again, function)
    return again


def _forward_of_timms(kind: type[Any]) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.act(self.drop(kind.forward(self, input, mask)))
        return y

    return forward


def _as_leaf(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `forward`, of which `torch.fx` makes one node, as it does of torch's own layers."""

    @functools.wraps(forward)
    def whole(self: Any, *given: Any, **named: Any) -> Tensor:
        node = leaf_of(self, *given, **named)
        return forward(self, *given, **named) if node is None else node

    return whole


def _remade(kind: Kind, origin: type[nn.Module]) -> nn.Module:
    """Return a layer of a derived class without its state, for pickle."""
    made = _derived(kind, origin)
    return made.__new__(made)


def _made_of(layer: nn.Module) -> tuple[Kind | None, Any]:
    """Return our class that `layer` is or is derived from, and what it takes the place of."""
    kind: Any = type(layer)
    if kind in _PLAIN:
        return kind, _PLAIN[kind]
    found: tuple[Kind | None, Any] = vars(kind).get("made_of", (None, None))
    return found


def _with_substitutes(module: Network, substitutes: Mapping[nn.Module, nn.Module]) -> Network:
    if not substitutes:
        return module
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children skips shared ones
            if child is not None and child in substitutes:
                setattr(parent, name, substitutes[child])
    return substitutes.get(module, module)  # type: ignore[return-value]


def _nothing_found(module: nn.Module) -> str:
    others = _names(layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    if not others:
        return (
            "the network has no batch normalization to convert; if that is meant, pass "
            "strict=False."
        )
    return (
        f"nothing was converted: {others} may compute anything, as their forward pass is their "
        "own. Say what to put in their place, factories={TheirClass: function of a layer}, or "
        "leave them as they are with strict=False."
    )


def _warn_of_others(layers: Iterable[nn.Module]) -> None:
    """Warn of layers that may compute anything and were left alone."""
    names = _names(layers)
    if names:
        warnings.warn(f"Left alone, as subclasses may compute anything: {names}.", stacklevel=3)


def _names(layers: Iterable[nn.Module]) -> str:
    return ", ".join(sorted({type(layer).__qualname__ for layer in layers}))
