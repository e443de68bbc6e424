"""A model as a file: what `bioren.files.container` writes and reads of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bioren.arrays.moments import Moments
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment, Removal
from bioren.effects.denoising import Denoiser
from bioren.effects.diagnosis import Diagnosis
from bioren.effects.expression import ExpressionBridge
from bioren.effects.states import ConditionalBridge, Round
from bioren.files.container import LARGEST, Stored, read, write
from bioren.network.autoencoder import BridgeNetwork
from bioren.reference.labels import LabelTransfer
from bioren.reference.mapper import Mapper
from bioren.reference.novelty import Familiarity
from bioren.reference.population import Population

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bioren.model.autoencoder import RenormAutoencoder

__all__ = ["load", "publish", "save"]

KIND = "model"

#: Parts of the network that know samples.
OF_SAMPLES = ("bridge.", "hidden_bridge.", "output_bridge.")

#: Tables of an alignment by sample and gene, and by sample.
BY_GENE = ("r", "d", "standard_error_r", "standard_error_d", "removed")
BY_SAMPLE = ("overlap", "overlap_before")


def save(model: RenormAutoencoder, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a fitted model; see `RenormAutoencoder.save`."""
    about, arrays = _contents(model)
    if model.population_.published is None:
        arrays |= _contents_of_samples(model)
    write(path, KIND, about, arrays, overwrite=overwrite)


def publish(
    model: RenormAutoencoder, path: str | Path, *, min_cells: int, overwrite: bool = False
) -> None:
    """Write what mapping needs of a fitted model; see `RenormAutoencoder.publish`."""
    mapper = model.mapper_
    population, states = mapper.population.reduced(min_cells)
    whole = mapper.network
    network = _new_network(*_sizes(whole, n_samples=1))
    own = network.state_dict()
    shared = {k: v for k, v in whole.state_dict().items() if not k.startswith(OF_SAMPLES)}
    network.load_state_dict(own | shared)
    embedded, places = (
        _of_told(known[states], population) for known in (mapper.embedded, mapper.places)
    )
    apart = _cells_apart(model)[:, states]
    few = (apart.sum(axis=0) < min_cells) | ((apart >= 1) & (apart < min_cells)).any(axis=0)
    places.mean[few], places.m2[few] = embedded.mean[few], embedded.m2[few]
    labels = {key: transfer.of_many(min_cells) for key, transfer in mapper.labels.items()}
    reduced = replace(
        mapper,
        labels={key: transfer for key, transfer in labels.items() if transfer is not None},
        population=population,
        network=network,
        states=mapper.states.without_samples(states),
        embedded=embedded,
        places=places,
        denoiser=replace(mapper.denoiser, centers=mapper.denoiser.centers[states]),
    )
    about, arrays = _contents(_with_mapper(model, reduced))
    # Mapping needs none of this, and it may name what is not to be told.
    about |= {"labels": None, "labels_key": None, "batch_key": "", "layer": None, "rng": None}
    for i in range(len(reduced.labels)):
        arrays[f"labels/{i}/cells"] = np.zeros_like(arrays[f"labels/{i}/cells"])
    write(path, KIND, about, arrays, overwrite=overwrite)


def _of_told(known: Moments, population: Population) -> Moments:
    """Return moments of the states with the counts of the samples that are told.

    Others' would be their difference.
    """
    told = population.strata.by_state.count
    return Moments(told, known.mean.copy(), known.var() * told[:, None])


def _own_samples(model: RenormAutoencoder) -> np.ndarray:
    """Return where the model's samples are in the population, which may hold others added later."""
    return np.array([model.population_.samples.index(name) for name in model.samples_])


def _cells_apart(model: RenormAutoencoder) -> np.ndarray:
    """Return how many of the reference's cells lie apart, shape ``(samples, states)``."""
    population = model.population_
    own = _own_samples(model)
    there = population.by_state.count[own] * population.in_reference[own][:, None]
    cells: np.ndarray = there * (1 - model.states_.usual)
    return cells


def load(path: str | Path, kind: type[RenormAutoencoder]) -> RenormAutoencoder:
    """Read a model of a class; see `bioren.load`."""
    stored = read(path, (KIND,))
    try:
        return _restored(stored, kind)
    except (KeyError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path} holds a model that does not fit together: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _contents(model: RenormAutoencoder) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what every model's file holds."""
    mapper = model.mapper_
    about, of_population = mapper.population.contents()
    removed, key, known = model.max_removed, model.batch_key_, mapper.familiarity
    about |= {
        "n_latent": int(model.n_latent),
        "n_hidden": int(model.n_hidden),
        "strength": float(model.strength),
        # JSON knows no infinity.
        "max_removed": removed and [None if math.isinf(of) else float(of) for of in removed],
        "rng": int(model.rng) if isinstance(model.rng, int | np.integer) else None,
        "batch_key": key if isinstance(key, str) else list(key),
        "layer": model.layer_,
        "labels_key": model.labels_key_,
        "labels": None if model.labels_ is None else list(model.labels_),
        "covariates": list(model.covariates_),
        "signed": bool(model.signed_),
        "n_rounds": len(mapper.states.rounds),
        "width": mapper.states.width,
        "knows": known.is_known,
        "single": known.single,
        "slope": known.slope if known.is_known else None,
        "level": known.level if known.is_known else None,
        "transfers": [[key, transfer.names] for key, transfer in mapper.labels.items()],
    }
    arrays = {f"population/{name}": array for name, array in of_population.items()}
    for name, tensor in mapper.network.state_dict().items():
        arrays[f"network/{name}"] = tensor.detach().cpu().numpy()
    for i, step in enumerate(mapper.states.rounds):
        arrays |= _prefixed(f"states/{i}", step._asdict())
    for name in ("kept", "apart", "usual", "unit"):
        arrays[f"states/{name}"] = getattr(mapper.states, name)
    if mapper.states.state_labels is not None:
        arrays["states/labels"] = mapper.states.state_labels
    arrays |= _of_moments("embedded", mapper.embedded) | _of_moments("places", mapper.places)
    arrays |= {
        "denoiser/centers": mapper.denoiser.centers,
        "denoiser/reliability": mapper.denoiser.reliability,
        "familiarity/center": known.center,
        "familiarity/unit": known.unit,
    }
    for i, transfer in enumerate(mapper.labels.values()):
        parts = {"weights": transfer.weights, "level": transfer.level, "cells": transfer.cells}
        arrays |= _prefixed(f"labels/{i}", parts)
    return about, arrays


def _contents_of_samples(model: RenormAutoencoder) -> dict[str, np.ndarray]:
    """Return what is needed to embed and correct the model's own samples."""
    alignment = model.alignment_
    arrays = {f"alignment/{name}": getattr(alignment, name) for name in BY_GENE + BY_SAMPLE}
    arrays |= _of_moments("alignment/samples", alignment.samples)
    arrays |= _of_moments("alignment/reference", alignment.reference)
    for name in ("bridges", "full"):
        bridge = getattr(alignment, name)
        arrays |= _prefixed(f"alignment/{name}", {"scale": bridge.scale, "shift": bridge.shift})
    arrays["expression/shift"] = model.expression_.shift
    arrays |= _prefixed("diagnosis", model.diagnosis_._asdict())
    arrays |= _prefixed(
        "history", {name: model.history_[name].to_numpy() for name in model.history_}
    )
    arrays["own_samples"] = _own_samples(model)
    return arrays


def _restored(stored: Stored, kind: type[RenormAutoencoder]) -> RenormAutoencoder:
    about = stored.about
    model = kind(
        stored.integer("n_latent", 1),
        stored.integer("n_hidden", 1),
        strength=stored.number("strength", 0, 1),
        max_removed=_limits(stored),
        # A generator is not kept.
        rng=np.random.default_rng() if about["rng"] is None else stored.integer("rng", 0),
    )
    population = Population.from_stored(stored.part("population"))
    n_states = population.by_state.count.shape[1]
    own = None
    if population.published is None:
        own = stored.array("own_samples", None, kind="i")
        inside = ((own >= 0) & (own < len(population.samples))).all()
        if not inside or len(own) == 0 or len(np.unique(own)) < len(own):
            raise ValueError("The model's samples are not those of its population.")
    n_samples = 1 if own is None else len(own)
    components = stored.array("network/components", len(population.variable), None)
    dims = components.shape[1]
    mapper = Mapper(
        population=population,
        network=_network(stored.part("network"), len(population.variable), n_samples, dims, model),
        states=_states(stored, 0 if own is None else n_samples, n_states, dims),
        embedded=_moments(stored.part("embedded"), (n_states,), dims),
        places=_moments(stored.part("places"), (n_states,), dims),
        denoiser=Denoiser(
            stored.array("denoiser/centers", n_states, dims),
            stored.array("denoiser/reliability", dims),
        ),
        familiarity=_familiarity(stored),
        removal=Removal(model.strength, max_removed=model.max_removed),
        labels=_transfers(stored, dims),
    )
    model = _with_mapper(model, mapper)
    several = isinstance(about["batch_key"], list) and len(about["batch_key"]) > 0
    model.batch_key_ = stored.texts("batch_key") if several else stored.text("batch_key")
    model.layer_, model.labels_key_ = (
        _maybe_text(stored, "layer"),
        _maybe_text(stored, "labels_key"),
    )
    model.labels_ = None if about["labels"] is None else stored.names("labels")
    model.covariates_ = stored.texts("covariates")
    if not isinstance(about["signed"], bool):
        raise ValueError("'signed' should be true or false.")
    model.signed_ = about["signed"]
    if 1 + len(model.covariates_) != len(mapper.states.unit):
        raise ValueError("The covariates' names and slopes differ in number.")
    if own is not None:
        model.samples_ = [population.samples[i] for i in own]
        _restore_samples(model, stored, n_states)
    return model


def _with_mapper(model: RenormAutoencoder, mapper: Mapper) -> RenormAutoencoder:
    """Return a model of the same settings that maps by `mapper` and knows no samples."""
    found = model._unfitted()
    for name in ("batch_key_", "layer_", "labels_key_", "labels_", "covariates_", "signed_"):
        if hasattr(model, name):
            setattr(found, name, getattr(model, name))
    population = mapper.population
    found.mapper_, found.samples_ = mapper, []
    found.genes_, found.variable_genes_ = population.genes, population.genes[population.variable]
    found.network_, found.states_, found.denoiser_ = mapper.network, mapper.states, mapper.denoiser
    found.reliability_ = mapper.denoiser.reliability
    return found


def _restore_samples(model: RenormAutoencoder, stored: Stored, n_states: int) -> None:
    n_samples, n_genes = len(model.samples_), len(model.genes_)
    part = stored.part("alignment")
    tables: dict[str, Any] = {name: part.array(name, n_samples, n_genes) for name in BY_GENE}
    tables |= {name: part.array(name, n_samples) for name in BY_SAMPLE}
    for name in ("bridges", "full"):
        scale, shift = (part.array(f"{name}/{of}", n_samples, n_genes) for of in ("scale", "shift"))
        tables[name] = AffineBridge(scale, shift)
    model.alignment_ = Alignment(
        samples=_moments(part.part("samples"), (n_samples,), n_genes),
        reference=_moments(part.part("reference"), (), n_genes),
        **tables,
    )
    shift = stored.array("expression/shift", n_samples, n_states, n_genes)
    model.expression_ = ExpressionBridge(model.alignment_.bridges.scale, shift)
    model.diagnosis_ = Diagnosis(
        **{name: stored.array(f"diagnosis/{name}", n_samples) for name in Diagnosis._fields}
    )
    model.history_ = pd.DataFrame(
        {
            "epoch": stored.array("history/epoch", None, kind="i"),
            "training": stored.array("history/training", None),
            "held_out": stored.array("history/held_out", None),
        }
    )


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
    stored: Stored, n_genes: int, n_samples: int, dims: int, model: RenormAutoencoder
) -> BridgeNetwork:
    # Sizes are those of arrays that were read: nothing is allocated for numbers that a file claims.
    n_hidden = stored.array("encoder.0.weight", None, n_genes).shape[0]
    if n_hidden != model.n_hidden:
        raise ValueError("The network's width is not that of its settings.")
    network = _new_network(n_genes, n_samples, dims, n_hidden)
    state = {}
    for name, tensor in network.state_dict().items():
        array = stored.array(name, *tensor.shape, kind="f" if tensor.is_floating_point() else "i")
        if (name.endswith("_var") and (array < 0).any()) or (name == "spread" and array <= 0):
            raise ValueError(f"The network's {name} is not positive.")
        state[name] = torch.from_numpy(array)
    network.load_state_dict(state)
    return network.eval()


def _states(stored: Stored, n_samples: int, n_states: int, dims: int) -> ConditionalBridge:
    unit = stored.array("states/unit", None)
    if (unit < 1 / LARGEST).any():
        raise ValueError("The covariates' units are not positive.")
    n_covariates = len(unit)
    rounds = []
    for i in range(stored.integer("n_rounds", 1, 1000)):
        part = stored.part(f"states/{i}")
        step = Round(
            part.array("centers", n_states, dims),
            part.array("log_odds", n_samples, n_states),
            part.array("shifts", n_samples, n_states, dims),
            part.array("slopes", n_states, n_covariates, dims),
            part.array("levels", n_samples, n_states, n_covariates),
        )
        rounds.append(step)
    labels = None
    if "states/labels" in stored.arrays:
        labels = stored.array("states/labels", n_states, kind="i")
    kept, apart = (
        stored.array(f"states/{name}", n_samples, n_states, dims) for name in ("kept", "apart")
    )
    usual = stored.array("states/usual", n_samples, n_states)
    if (usual < 0).any() or (usual > 1).any():
        raise ValueError("What counts as a batch effect is outside [0, 1].")
    width = stored.number("width", 1e-6)
    return ConditionalBridge(tuple(rounds), width, kept, apart, usual, labels, unit)


def _familiarity(stored: Stored) -> Familiarity:
    center, unit = stored.array("familiarity/center", 2), stored.array("familiarity/unit", 2)
    single = stored.about["single"]
    are_flags = isinstance(stored.about["knows"], bool) and isinstance(single, bool)
    if not are_flags or (unit <= 0).any():
        raise ValueError("What the mapping score was learned from does not fit together.")
    if not stored.about["knows"]:
        return Familiarity(center, unit, math.nan, math.nan, single)
    slope = stored.number("slope", -math.inf, 0)
    return Familiarity(center, unit, slope, stored.number("level", -math.inf), single)


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
