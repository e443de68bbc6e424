"""From a study to a fitted model: bridges, network, states, population, as the data go."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioren._version import __version__
from bioren.adata.matrix import MIN_DIMENSIONS, check_strength, check_varies, target_sum
from bioren.adata.study import Design, Study
from bioren.arrays.blocks import Block
from bioren.arrays.components import Projection
from bioren.arrays.groups import sample_sums
from bioren.arrays.lazy import rows_of
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import CellsByDims, CellsByStates, GenesByDims
from bioren.arrays.threads import with_one_blas_thread
from bioren.bridge import AffineBridge, check_limits
from bioren.effects.alignment import Alignment, Removal, align, warn_isolated
from bioren.effects.denoising import Denoiser, reliability
from bioren.effects.diagnosis import (
    Diagnosis,
    sample_specific,
    structure_removed,
    unmatched,
    warn_structure,
)
from bioren.effects.gene_programs import warn_programs
from bioren.effects.limits import expression_bridge, within_limits
from bioren.effects.state_profile import moments_by_state
from bioren.effects.states import CellFacts, ConditionalBridge, default_n_states
from bioren.effects.unmeasured import expected_there, warn_unmeasured
from bioren.model.fitted import Fitted, OwnSamples, Placement, Settings, network_facts
from bioren.network.bridge_network import BridgeNetwork
from bioren.network.training import Epoch, embed, fit_network
from bioren.reference.mapper import Mapper
from bioren.reference.population import Population

__all__ = ["align_study", "check_settings", "find_states", "fit", "warn_of_effects"]

#: Entries of a table samples x states x genes, of which a model holds three: 256 MiB each.
SHIFT_ENTRIES = 2**26


def check_settings(n_latent: object, strength: Any, *, max_removed: object) -> None:
    """Refuse settings that are out of range or of another kind, before any work; see `Settings`.

    Raises
    ------
    TypeError, ValueError
        One is.
    """
    check_strength(strength)
    check_limits("max_removed", max_removed)
    if not isinstance(n_latent, int | np.integer):
        msg = f"n_latent must be a whole number, such as 20, received {n_latent!r}."
        raise TypeError(msg)
    if n_latent < MIN_DIMENSIONS:
        msg = f"n_latent must be {MIN_DIMENSIONS} or more, received {n_latent}."
        raise ValueError(msg)


@with_one_blas_thread
def fit(
    study: Study, settings: Settings, rng: np.random.Generator, *, scored: bool = True
) -> tuple[Fitted, Placement]:
    """Find bridges, network and states.

    Parameters
    ----------
    study
        Expression, and what is known of its cells.
    settings
        See `Settings`.
    rng
        Source of all randomness.
    scored
        Whether the model is to map queries and score them; without, scores are NaN.

    Returns
    -------
    Fitted
        The model.
    Placement
        The study's own cells in it, from which their results are had without another look.
    """
    cells, design = study
    variable = cells.variable_matrix()
    check_varies(variable)
    facts = network_facts(variable, design.facts)
    removal = settings.removal
    alignment = align_study(study, facts, removal, rng=rng, variable=variable)
    warn_of_effects(design.batches.names, list(cells.genes), alignment)

    of_variable = alignment.of_genes(cells.variable)
    network, history = _train(study, variable, of_variable, settings=settings, rng=rng)
    states, placement = _place(
        study, variable, facts, of_variable=of_variable, network=network, settings=settings, rng=rng
    )
    _warn_fewer(settings.n_latent, placement)
    denoiser = _denoiser(placement, of_variable, rng)
    loadings, placed = _components(network), placement.placed
    population = _population(study, alignment, loadings, share=placed.share)
    own = OwnSamples(
        names=design.batches.names,
        alignment=alignment,
        expression=expression_bridge(
            _compared_by_state(study, population.by_state, placed.share),
            alignment,
            removal,
            inlier_weight=states.inlier_weight,
            in_reference=design.in_reference,
        ),
        diagnosis=_diagnose(placement, of_variable, states, loadings=loadings),
        history=history,
    )
    warn_structure(own.names, own.diagnosis.structure_removed, np.bincount(facts.codes))
    mapper = Mapper.fit(
        population,
        network,
        states,
        denoiser=denoiser,
        removal=removal,
        x=variable,
        facts=facts,
        placed=placed,
        scored=scored,
        rng=rng,
    )
    signed = cells.values.negative
    return Fitted(settings, design.columns, design.labels, signed, mapper, own), placement


def warn_of_effects(names: Sequence[str], genes: Sequence[str], alignment: Alignment) -> None:
    """Warn of samples and genes whose effects are not what they seem to be."""
    warn_isolated(names, alignment)
    warn_unmeasured(names, genes, alignment.unmeasured)
    warn_programs(names, genes, alignment)


def _warn_fewer(n_latent: int, placement: Placement) -> None:
    """Warn that there are fewer dimensions than were asked for; the default asks for none."""
    n_genes, dims = placement.variable.shape[1], placement.placed.corrected.shape[1]
    if n_genes <= n_latent != Settings().n_latent:
        msg = (
            f"n_latent={n_latent}: {n_genes} variable genes allow no more than {n_genes - 1} "
            f"dimensions, and the embedding has {dims}."
        )
        warnings.warn(msg, stacklevel=4)


def align_study(
    study: Study,
    facts: CellFacts,
    removal: Removal,
    *,
    rng: np.random.Generator,
    variable: Block | None,
) -> Alignment:
    """Find the effect of each sample on each gene, from the controls where there are some.

    Parameters
    ----------
    study
        Expression, and what is known of its cells.
    facts
        What states may be found with.
    removal
        How much is removed.
    rng
        Source of randomness.
    variable
        Expression of the genes that tell states apart, in memory; None: the samples' plain moments
        are compared.
    """
    (x, _, genes, columns, survey), design = study
    if design.controls is not None:
        x, facts = rows_of(x, design.controls), facts.of(design.controls)
        variable = None if variable is None else variable[design.controls]
    if design.population is not None:
        of_population = design.population.columns_of(genes)
        return design.population.align(
            x, facts.codes, design.n_samples, columns=of_population, removal=removal
        )
    return align(
        x,
        facts,
        design.n_samples,
        rng=rng,
        variable=None if variable is None else (variable, columns),
        in_reference=design.in_reference,
        removal=removal,
        iterations=0 if variable is None else 2,
        survey=survey,
    )


def _train(
    study: Study,
    variable: Block,
    of_variable: Alignment,
    *,
    settings: Settings,
    rng: np.random.Generator,
) -> tuple[BridgeNetwork, pd.DataFrame]:
    """Fit the network to bridged expression; return it and its errors by epoch."""
    network, history = fit_network(
        variable,
        study.design.batches.codes,
        of_variable.samples,
        reference=of_variable.reference,
        sizes=(settings.n_latent, settings.n_hidden),
        in_reference=study.design.in_reference,
        options=settings.training,
        rng=rng,
    )
    return network, pd.DataFrame(history, columns=list(Epoch._fields))


def _place(
    study: Study,
    variable: Block,
    facts: CellFacts,
    *,
    of_variable: Alignment,
    network: BridgeNetwork,
    settings: Settings,
    rng: np.random.Generator,
) -> tuple[ConditionalBridge, Placement]:
    """Embed the cells, find states and shifts within the limits, and place the cells by them."""
    z = embed(network, variable, facts.codes)
    design, loadings = study.design, _components(network)
    # Fewer states where samples times genes are many.
    most = SHIFT_ENTRIES // (design.n_samples * len(study.cells.genes))
    n_states = max(1, min(default_n_states(len(z)), most))
    states = find_states(
        z, facts, design, n_states=n_states, strength=settings.strength, rng=rng
    ).limited(
        lambda shifts: within_limits(shifts, of_variable, loadings, d_max=settings.removal.d_max)
    )
    return states, Placement(study.cells, variable, facts.codes, states.place(z, facts))


def _denoiser(placement: Placement, of_variable: Alignment, rng: np.random.Generator) -> Denoiser:
    _, variable, codes, placed = placement
    reliable = reliability(
        variable,
        codes,
        placed.share,
        bridges=of_variable.filled,
        center=of_variable.reference.mean,
        n_components=placed.corrected.shape[1],
        rng=rng,
    )
    return Denoiser.fit(
        placed.corrected, placed.share, placed.sample_specific, reliability=reliable
    )


def find_states(
    z: CellsByDims,
    facts: CellFacts,
    design: Design,
    *,
    n_states: int | None = None,
    strength: float,
    rng: np.random.Generator,
) -> ConditionalBridge:
    """Find states and shifts in an embedding, from the controls where there are some.

    Parameters
    ----------
    z
        The embedding, shape ``(cells, dims)``.
    facts
        What states may be found with.
    design
        What is known of the cells.
    n_states
        See `ConditionalBridge.fit`.
    strength
        Share of each shift that is removed.
    rng
        Source of randomness.
    """
    compared = slice(None) if design.controls is None else design.controls
    return ConditionalBridge.fit(
        z[compared],
        facts.of(compared),
        design.n_samples,
        rng=rng,
        in_reference=design.in_reference,
        n_states=n_states,
        strength=strength,
    )


def _compared_by_state(study: Study, by_state: Moments, share: CellsByStates) -> Moments:
    """Return the moments by sample and state of the cells that effects are taken from."""
    design = study.design
    if design.controls is None:
        return by_state
    some = rows_of(study.cells.x, design.controls)
    codes = design.batches.codes[design.controls]
    return moments_by_state(some, codes, design.n_samples, share=share[design.controls])


def _population(
    study: Study, alignment: Alignment, loadings: GenesByDims, *, share: CellsByStates
) -> Population:
    cells, design = study
    everything = np.ones(design.n_samples, dtype=bool)
    by_state = moments_by_state(cells.x, design.batches.codes, design.n_samples, share=share)
    return Population(
        genes=cells.genes,
        samples=design.batches.names,
        by_state=expected_there(by_state, alignment.unmeasured),
        bridges=alignment.full,
        in_reference=everything if design.in_reference is None else design.in_reference,
        variable=cells.variable,
        components=loadings,
        normalization={"bioren": __version__, "target_sum": target_sum(cells.x)},
    )


def _diagnose(
    placement: Placement,
    of_variable: Alignment,
    states: ConditionalBridge,
    *,
    loadings: GenesByDims,
) -> Diagnosis:
    """Compare the cells' coordinates along the components before and after all bridges."""
    _, x, codes, placed = placement
    projection = Projection(of_variable.reference.mean, loadings)
    bridges = of_variable.bridges
    before = projection.apply(x, codes, AffineBridge.identity(*bridges.scale.shape))
    after = projection.apply(x, codes, bridges) - states.removed_shift(placed.share, codes)
    n_samples = len(bridges.scale)
    count = sample_sums(placed.share, codes, n_samples)
    return Diagnosis(
        overlap_before=of_variable.overlap_before,
        overlap=of_variable.overlap,
        unmatched=unmatched(count),
        sample_specific=sample_specific(count, states.inlier_weight),
        structure_removed=structure_removed(before, after, codes, n_samples=n_samples),
    )


def _components(network: BridgeNetwork) -> GenesByDims:
    return network.components.detach().cpu().numpy()
