"""A fitted model as a file: what `bioren.files.container` writes and reads of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bioren.adata.record import with_kept
from bioren.adata.study import Columns
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import Positions, SamplesByStates
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment
from bioren.effects.denoising import Denoiser
from bioren.effects.diagnosis import Diagnosis
from bioren.effects.expression import ExpressionBridge
from bioren.effects.states import ConditionalBridge, Iteration, StateOptions
from bioren.files.container import LARGEST, Stored, read, write
from bioren.model.fitted import Fitted, OwnSamples, Settings
from bioren.network.bridge_network import BridgeNetwork
from bioren.reference.confidence import MappingConfidence
from bioren.reference.labels import LabelTransfer
from bioren.reference.mapper import Mapper
from bioren.reference.population import Population

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load", "publish", "save"]

KIND = "model"

#: Parts of the network that know samples.
OF_SAMPLES = ("input_", "hidden_bridge.", "output_bridge.")

#: Where format 1 holds the bridge of the network's input.
OLD_LAYER = "network/bridge."

#: Arrays that format 1 calls otherwise.
RENAMED = (
    ("places/", "coordinates/"),
    ("familiarity/", "confidence/"),
    ("states/apart", "states/specific"),
    ("states/usual", "states/inlier_weight"),
    ("diagnosis/alone", "diagnosis/unmatched"),
    ("diagnosis/apart", "diagnosis/sample_specific"),
)

#: What the states know, by its name in the file.
STATES = {
    "kept": "retained",
    "specific": "sample_specific",
    "inlier_weight": "inlier_weight",
    "unit": "unit",
}
#: Tables of an alignment by sample and gene, and by sample.
BY_GENE = ("r", "d", "standard_error_r", "standard_error_d", "removed")
BY_SAMPLE = ("overlap", "overlap_before", "scales_states")


def save(fitted: Fitted, path: str | Path, *, rng: object = None, overwrite: bool = False) -> None:
    """Write a fitted model; see `RenormAutoencoder.save`.

    Parameters
    ----------
    rng
        The seed that it was fitted with, kept if it is a number.
    """
    about, arrays = _contents(fitted)
    about["rng"] = int(rng) if isinstance(rng, int | np.integer) else None
    if fitted.own is not None:
        arrays |= _contents_of_samples(fitted, fitted.own)
    write(path, KIND, about, arrays, overwrite=overwrite)


def publish(fitted: Fitted, path: str | Path, *, min_cells: int, overwrite: bool = False) -> None:
    """Write what mapping needs of a fitted model; see `RenormAutoencoder.publish`."""
    mapper = fitted.mapper
    population, states = mapper.population.reduced(min_cells)
    whole = mapper.network
    network = _new_network(*_sizes(whole, n_samples=1))
    own = network.state_dict()
    shared = {k: v for k, v in whole.state_dict().items() if not k.startswith(OF_SAMPLES)}
    network.load_state_dict(own | shared)
    embedded, coordinates = (
        _of_told(known[states], population) for known in (mapper.embedded, mapper.coordinates)
    )
    specific = _specific_cells(fitted)[:, states]
    few = (specific.sum(axis=0) < min_cells) | ((specific >= 1) & (specific < min_cells)).any(
        axis=0
    )
    coordinates.mean[few], coordinates.m2[few] = embedded.mean[few], embedded.m2[few]
    labels = {key: transfer.of_many(min_cells) for key, transfer in mapper.labels.items()}
    reduced = replace(
        mapper,
        labels={key: transfer for key, transfer in labels.items() if transfer is not None},
        population=population,
        network=network,
        states=mapper.states.without_samples(states),
        embedded=embedded,
        coordinates=coordinates,
        denoiser=replace(mapper.denoiser, centers=mapper.denoiser.centers[states]),
    )
    about, arrays = _contents(replace(fitted, mapper=reduced, own=None))
    # Mapping needs none of this, and it may name what is not to be told.
    about |= {"labels": None, "labels_key": None, "batch_key": "", "layer": None, "rng": None}
    for i in range(len(reduced.labels)):
        arrays[f"labels/{i}/cells"] = np.zeros_like(arrays[f"labels/{i}/cells"])
    write(path, KIND, about, arrays, overwrite=overwrite)


def _of_told(known: Moments, population: Population) -> Moments:
    """Return moments of the states with the counts of the samples that are told.

    Others' would be their difference.
    """
    told = population.profile.by_state.count
    return Moments(told, known.mean.copy(), known.var() * told[:, None])


def _own_samples(fitted: Fitted) -> Positions:
    """Return where the model's samples are in the population, which may hold others added later."""
    names = fitted.samples().names
    return np.array([fitted.population.samples.index(name) for name in names])


def _specific_cells(fitted: Fitted) -> SamplesByStates:
    """Return how many of the reference's cells are sample-specific."""
    population = fitted.population
    own = _own_samples(fitted)
    there = population.by_state.count[own] * population.in_reference[own][:, None]
    return there * (1 - fitted.states.inlier_weight)


def load(path: str | Path) -> tuple[Fitted, int | None]:
    """Read a fitted model and its seed, None if that was none; see `bioren.load`."""
    stored = read(path, (KIND,))
    try:
        seed = None if stored.about["rng"] is None else stored.integer("rng", 0)
        return _restored(stored), seed
    except (KeyError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path} holds a model that does not fit together: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _contents(fitted: Fitted) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what every model's file holds."""
    mapper, settings, columns = fitted.mapper, fitted.settings, fitted.columns
    about, of_population = mapper.population.contents()
    removed, key, known = settings.max_removed, columns.batch_key, mapper.confidence
    about |= {
        "n_latent": int(settings.n_latent),
        "n_hidden": int(settings.n_hidden),
        "strength": float(settings.strength),
        # JSON knows no infinity.
        "max_removed": removed and [None if math.isinf(of) else float(of) for of in removed],
        "rng": None,
        "batch_key": key if isinstance(key, str) else list(key),
        "layer": columns.layer,
        "labels_key": columns.labels_key,
        "labels": None if fitted.labels is None else list(fitted.labels),
        "covariates": list(columns.covariates),
        "signed": bool(fitted.signed),
        "n_rounds": len(mapper.states.iterations),
        "width": mapper.states.options.width,
        "prior_cells": mapper.states.options.prior_shift,
        "max_rounds": mapper.states.options.iterations,
        "knows": known.is_known,
        "single": known.single,
        "slope": known.slope if known.is_known else None,
        "level": known.level if known.is_known else None,
        "transfers": [[key, transfer.names] for key, transfer in mapper.labels.items()],
    }
    arrays = {f"population/{name}": array for name, array in of_population.items()}
    for name, tensor in mapper.network.state_dict().items():
        arrays[f"network/{name}"] = tensor.detach().cpu().numpy()
    for i, step in enumerate(mapper.states.iterations):
        arrays |= _prefixed(f"states/{i}", step._asdict())
    for name, attribute in STATES.items():
        arrays[f"states/{name}"] = getattr(mapper.states, attribute)
    if mapper.states.state_labels is not None:
        arrays["states/labels"] = mapper.states.state_labels
    arrays |= _of_moments("embedded", mapper.embedded) | _of_moments(
        "coordinates", mapper.coordinates
    )
    arrays |= {
        "denoiser/centers": mapper.denoiser.centers,
        "denoiser/reliability": mapper.denoiser.reliability,
        "confidence/center": known.center,
        "confidence/unit": known.unit,
    }
    for i, transfer in enumerate(mapper.labels.values()):
        parts = {"weights": transfer.weights, "level": transfer.level, "cells": transfer.cells}
        arrays |= _prefixed(f"labels/{i}", parts)
    return about, arrays


def _contents_of_samples(fitted: Fitted, own: OwnSamples) -> dict[str, np.ndarray]:
    """Return what is needed to embed and correct the model's own samples."""
    alignment = own.alignment
    # Infinite are the errors of genes that were never measured; files hold finite numbers.
    arrays = {
        f"alignment/{name}": np.minimum(getattr(alignment, name), LARGEST)
        for name in BY_GENE + BY_SAMPLE
    }
    arrays |= _of_moments("alignment/samples", alignment.samples)
    arrays |= _of_moments("alignment/reference", alignment.reference)
    for name in ("bridges", "full"):
        bridge = getattr(alignment, name)
        arrays |= _prefixed(f"alignment/{name}", {"scale": bridge.scale, "shift": bridge.shift})
    arrays["expression/shift"] = own.expression.shift
    arrays |= _prefixed("diagnosis", own.diagnosis._asdict())
    arrays |= _prefixed("history", {name: own.history[name].to_numpy() for name in own.history})
    arrays["own_samples"] = _own_samples(fitted)
    return arrays


def _of_today(stored: Stored) -> Stored:
    """Return what a file of format 1 holds under the names of today."""
    if stored.version > 1:
        return stored
    arrays = {
        next((new + name[len(old) :] for old, new in RENAMED if name.startswith(old)), name): array
        for name, array in stored.arrays.items()
    }
    # The bridge of the network's input was a layer, which held the moments that it leads between.
    layer = [name for name in arrays if name.startswith(OLD_LAYER)]
    moments = {name.removeprefix(OLD_LAYER): arrays.pop(name) for name in layer}
    bridge = _bridge_of_layer(stored._replace(arrays=moments))
    arrays |= {"network/input_scale": bridge.scale, "network/input_shift": bridge.shift}
    return stored._replace(arrays=arrays)


def _bridge_of_layer(stored: Stored) -> AffineBridge:
    """Return the bridges of samples that a layer of format 1 holds, in single precision."""
    mean, var = stored.array("sample_mean", None, None), stored.array("sample_var", None, None)
    cells = stored.array("sample_cells", len(mean), kind="i")
    center = stored.array("running_mean", mean.shape[1]), stored.array("running_var", mean.shape[1])
    if mean.shape != var.shape or any((of < 0).any() for of in (var, center[1], cells)):
        raise ValueError("The moments of the network's input do not fit together.")
    count = np.maximum(cells, 1).astype(np.float64)
    found = AffineBridge.between(
        Moments(count, mean, count[:, None] * var), Moments(np.array(1.0), *center)
    )
    seen = (cells > 0)[:, None]  # of other samples nothing is known
    scale, shift = np.where(seen, found.scale, 1.0), np.where(seen, found.shift, 0.0)
    return AffineBridge(scale.astype(np.float32), shift.astype(np.float32))


def _restored(stored: Stored) -> Fitted:
    stored = _of_today(stored)
    settings = Settings(
        stored.integer("n_latent", 1),
        stored.integer("n_hidden", 1),
        stored.number("strength", 0, 1),
        _limits(stored),
    )
    population = Population.from_stored(stored.part("population"))
    coordinates = None if population.published is not None else _rows_of_own(stored, population)
    n_samples = 0 if coordinates is None else len(coordinates)
    mapper = _mapper(stored, population, n_samples, settings=settings)
    columns = _columns(stored)
    if 1 + len(columns.covariates) != len(mapper.states.unit):
        raise ValueError("The covariates' names and slopes differ in number.")
    if not isinstance(stored.about["signed"], bool):
        raise ValueError("'signed' should be true or false.")
    own = None
    if coordinates is not None:
        own = _own(stored, [population.samples[i] for i in coordinates], population)
    labels = None if stored.about["labels"] is None else stored.names("labels")
    return Fitted(settings, columns, labels, stored.about["signed"], mapper, own)


def _rows_of_own(stored: Stored, population: Population) -> Positions:
    """Return where the model's own samples are among those of its population."""
    own = stored.array("own_samples", None, kind="i")
    inside = ((own >= 0) & (own < len(population.samples))).all()
    if not inside or len(own) == 0 or len(np.unique(own)) < len(own):
        raise ValueError("The model's samples are not those of its population.")
    return own


def _mapper(
    stored: Stored, population: Population, n_samples: int, *, settings: Settings
) -> Mapper:
    n_states = population.by_state.count.shape[1]
    n_genes = len(population.variable)
    dims = stored.array("network/components", n_genes, None).shape[1]
    network = stored.part("network")
    return Mapper(
        population=population,
        network=_network(network, n_genes, max(n_samples, 1), dims=dims, settings=settings),
        states=_states(stored, n_samples, n_states, dims=dims),
        embedded=_moments(stored.part("embedded"), (n_states,), dims),
        coordinates=_moments(stored.part("coordinates"), (n_states,), dims),
        denoiser=Denoiser(
            stored.array("denoiser/centers", n_states, dims),
            stored.array("denoiser/reliability", dims),
        ),
        confidence=_confidence(stored),
        removal=settings.removal,
        labels=_transfers(stored, dims),
    )


def _columns(stored: Stored) -> Columns:
    key = stored.about["batch_key"]
    several = isinstance(key, list) and len(key) > 0
    return Columns(
        stored.texts("batch_key") if several else stored.text("batch_key"),
        _maybe_text(stored, "layer"),
        _maybe_text(stored, "labels_key"),
        stored.texts("covariates"),
    )


def _own(stored: Stored, names: list[str], population: Population) -> OwnSamples:
    n_samples, n_genes = len(names), len(population.genes)
    part = stored.part("alignment")
    tables: dict[str, Any] = {name: part.array(name, n_samples, n_genes) for name in BY_GENE}
    # Older files took every sample to be scaled as a whole.
    missing = {"scales_states": np.ones(n_samples)} if "scales_states" not in part.arrays else {}
    for name in ("standard_error_r", "standard_error_d"):
        tables[name] = np.where(tables[name] < LARGEST / 2, tables[name], np.inf)
    tables |= {name: part.array(name, n_samples) for name in BY_SAMPLE if name not in missing}
    tables |= missing
    for name in ("bridges", "full"):
        scale, shift = (part.array(f"{name}/{of}", n_samples, n_genes) for of in ("scale", "shift"))
        tables[name] = AffineBridge(scale, shift)
    alignment = Alignment(
        samples=_moments(part.part("samples"), (n_samples,), n_genes),
        reference=_moments(part.part("reference"), (), n_genes),
        **tables,
    )
    n_states = population.by_state.count.shape[1]
    shift = stored.array("expression/shift", n_samples, n_states, n_genes)
    diagnosis = {name: stored.array(f"diagnosis/{name}", n_samples) for name in Diagnosis._fields}
    history = pd.DataFrame(
        {
            "epoch": stored.array("history/epoch", None, kind="i"),
            "training": stored.array("history/training", None),
            "held_out": stored.array("history/held_out", None),
        }
    )
    if "history/kept" in stored.arrays:
        history["kept"] = stored.array("history/kept", None, kind="b")
    history = with_kept(history)
    expression = ExpressionBridge(alignment.bridges.scale, shift)
    return OwnSamples(names, alignment, expression, Diagnosis(**diagnosis), history)


def _limits(stored: Stored) -> tuple[float, float] | None:
    found = stored.about["max_removed"]
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError(f"'max_removed' should be two numbers, found {found!r:.60}.")
    limits = stored._replace(about={"r": found[0], "d": found[1]})
    r_max, d_max = (
        math.inf if of is None else limits.number(name, least)
        for name, of, least in zip("rd", found, (1, 0), strict=True)
    )
    return r_max, d_max


def _maybe_text(stored: Stored, name: str) -> str | None:
    return None if stored.about[name] is None else stored.text(name)


def _network(
    stored: Stored, n_genes: int, n_samples: int, *, dims: int, settings: Settings
) -> BridgeNetwork:
    # Sizes are those of arrays that were read: nothing is allocated for numbers that a file claims.
    n_hidden = stored.array("encoder.0.weight", None, n_genes).shape[0]
    if n_hidden != settings.n_hidden:
        raise ValueError("The network's width is not that of its settings.")
    network = _new_network(n_genes, n_samples, dims, n_hidden)
    state = {}
    for name, tensor in network.state_dict().items():
        array = stored.array(name, *tensor.shape, kind="f" if tensor.is_floating_point() else "i")
        if name in ("input_scale", "spread") and (array <= 0).any():
            raise ValueError(f"The network's {name} is not positive.")
        state[name] = torch.from_numpy(array)
    network.load_state_dict(state)
    return network.eval()


def _states(stored: Stored, n_samples: int, n_states: int, *, dims: int) -> ConditionalBridge:
    unit = stored.array("states/unit", None)
    if (unit < 1 / LARGEST).any():
        raise ValueError("The covariates' units are not positive.")
    n_covariates = len(unit)
    iterations = []
    for i in range(stored.integer("n_rounds", 1, 1000)):
        part = stored.part(f"states/{i}")
        step = Iteration(
            part.array("centers", n_states, dims),
            part.array("log_odds", n_samples, n_states),
            part.array("shifts", n_samples, n_states, dims),
            part.array("slopes", n_states, n_covariates, dims),
            part.array("levels", n_samples, n_states, n_covariates),
        )
        iterations.append(step)
    labels = None
    if "states/labels" in stored.arrays:
        labels = stored.array("states/labels", n_states, kind="i")
    retained, specific = (
        stored.array(f"states/{name}", n_samples, n_states, dims) for name in ("kept", "specific")
    )
    inlier_weight = stored.array("states/inlier_weight", n_samples, n_states)
    if (inlier_weight < 0).any() or (inlier_weight > 1).any():
        raise ValueError("What counts as a batch effect is outside [0, 1].")
    options = StateOptions(width=stored.number("width", 1e-6))
    if stored.version > 1:
        options = options._replace(
            prior_shift=stored.number("prior_cells", 0),
            iterations=stored.integer("max_rounds", 1, 1000),
        )
    return ConditionalBridge(
        tuple(iterations), options, retained, specific, inlier_weight, labels, unit
    )


def _confidence(stored: Stored) -> MappingConfidence:
    center, unit = stored.array("confidence/center", 2), stored.array("confidence/unit", 2)
    single = stored.about["single"]
    are_flags = isinstance(stored.about["knows"], bool) and isinstance(single, bool)
    if not are_flags or (unit <= 0).any():
        raise ValueError("What the mapping score was learned from does not fit together.")
    if not stored.about["knows"]:
        return MappingConfidence(center, unit, math.nan, math.nan, single)
    slope = stored.number("slope", -math.inf, 0)
    return MappingConfidence(center, unit, slope, stored.number("level", -math.inf), single)


def _transfers(stored: Stored, dims: int) -> dict[str, LabelTransfer]:
    found: dict[str, LabelTransfer] = {}
    for i, (key, names) in enumerate(stored.about["transfers"]):
        part = stored.part(f"labels/{i}")._replace(about={"key": key, "labels": names})
        if part.text("key") in found or not part.names("labels"):
            raise ValueError("The labels that are carried over have no names, or one name twice.")
        found[key] = LabelTransfer(
            names,
            part.array("weights", dims, len(names)),
            part.array("level", len(names)),
            part.array("cells", len(names), kind="i"),
        )
    return found


def _new_network(n_genes: int, n_samples: int, dims: int, n_hidden: int) -> BridgeNetwork:
    """Return a network to be filled; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return BridgeNetwork(n_genes, n_samples, dims, n_hidden)


def _sizes(network: BridgeNetwork, *, n_samples: int) -> tuple[int, int, int, int]:
    n_genes, dims = network.components.shape
    return n_genes, n_samples, dims, network.hidden_bridge.d.shape[1]


def _moments(stored: Stored, groups: tuple[int, ...], n_genes: int) -> Moments:
    found = Moments(
        stored.array("count", *groups),
        stored.array("mean", *groups, n_genes),
        stored.array("m2", *groups, n_genes),
    )
    if (found.count < 0).any() or (found.m2 < 0).any():
        raise ValueError("Counts or squared deviations are negative.")
    return found


def _of_moments(prefix: str, of: Moments) -> dict[str, np.ndarray]:
    return _prefixed(prefix, {"count": np.asarray(of.count), "mean": of.mean, "m2": of.m2})


def _prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}
