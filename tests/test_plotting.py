"""The plots: what they show, that labels can be read, and what they leave alone."""

import functools
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose
from simulation import simulate

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bioren
from bioren.plotting import style

PLOTS = {
    "batch_effects": bioren.pl.batch_effects,
    "samples": bioren.pl.samples,
    "limits": bioren.pl.limits,
    "limits of r": lambda adata, **options: bioren.pl.limits(adata, of="r", **options),
    "training_history": bioren.pl.training_history,
    "before_after": bioren.pl.before_after,
}


@functools.cache
def _many(n_samples, *, n_genes=60, long_names=False):
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(n_samples), 12)
    shift = rng.normal(0, 0.5, (n_samples, n_genes))
    shift[1] *= 8
    x = 5 + rng.normal(size=(len(codes), n_genes)) + shift[codes]
    tail = "_of_a_sample_with_a_long_name" if long_names else ""
    obs = pd.DataFrame({"sample": [f"donor{code:02}{tail}{code}" for code in codes]})
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"GENE-{g}.{'1' * (g % 20)}" for g in range(n_genes)])
    adata = AnnData(x, obs=obs, var=var)
    bioren.pp.bridge(adata, "sample", standardize=False, max_removed=(2.0, 1.0))
    adata.obsm["X_bioren"] = adata.layers["bioren"][:, :5]
    adata.uns["bioren"]["history"] = {
        "epoch": np.arange(4),
        "training": np.array([0.9, 0.8, 0.75, 0.7]),
        "held_out": np.array([0.95, 0.9, 0.85, 0.87]),
    }
    return adata


def many(n_samples, **options):
    """Return cells of many samples after `pp.bridge`; sample 1 has a far larger effect."""
    return _many(n_samples, **options).copy()


@pytest.fixture(scope="module")
def forty():
    return many(40, long_names=True)


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def axes_of(result):
    return list(result) if isinstance(result, np.ndarray) else [result]


def overlapping(texts, renderer):
    """Return pairs of texts whose boxes overlap by more than half a pixel."""
    texts = [text for text in texts if text.get_text()]
    boxes = [text.get_window_extent(renderer).padded(-0.5) for text in texts]
    return [
        (a.get_text(), b.get_text())
        for (a, box), (b, other) in itertools.combinations(zip(texts, boxes, strict=True), 2)
        if box.overlaps(other)
    ]


def texts_of(ax):
    """Return everything written around and in an Axes."""
    ticks = [
        label
        for axis in (ax.xaxis, ax.yaxis)
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        if min(axis.get_view_interval()) <= place <= max(axis.get_view_interval())
    ]
    legend = ax.get_legend()
    return [
        text
        for text in [
            *ticks,
            *ax.texts,
            ax.xaxis.label,
            ax.yaxis.label,
            ax.title,
            ax._left_title,
            *(legend.get_texts() if legend else []),
        ]
        if text.get_text() and text.get_visible()
    ]


@pytest.mark.parametrize("n_samples", [2, 40])
@pytest.mark.parametrize("name", PLOTS)
def test_nothing_overlaps_or_is_cut_off(name, n_samples):
    result = PLOTS[name](many(n_samples, long_names=n_samples == 40))
    figure = axes_of(result)[0].figure
    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    for ax in figure.axes:
        texts = texts_of(ax)
        assert not overlapping(texts, renderer)
        for text in texts:
            box = text.get_window_extent(renderer)
            inside = (
                box.x0 > frame.x0 - 1
                and box.x1 < frame.x1 + 1
                and box.y0 > frame.y0 - 1
                and box.y1 < frame.y1 + 1
            )
            assert inside, text.get_text()


@pytest.mark.parametrize("size", [(4, 3), (9, 14)])
@pytest.mark.parametrize("name", ["batch_effects", "samples", "limits", "limits of r"])
def test_names_fit_into_axes_of_any_size(forty, name, size):
    ax = FigureCanvasAgg(Figure(figsize=size)).figure.subplots()
    PLOTS[name](forty, ax=ax)
    ax.figure.draw_without_rendering()
    renderer = ax.figure.canvas.get_renderer()
    for labels in (ax.get_xticklabels(), ax.get_yticklabels(), ax.texts):
        assert not overlapping(labels, renderer)
    assert min(label.get_fontsize() for label in ax.get_yticklabels()) >= style.SMALLEST
    if size == (9, 14):
        assert len(ax.get_yticklabels()) == 40


@pytest.mark.parametrize("name", PLOTS)
def test_axes_that_are_given_are_drawn_on_and_pyplot_is_left_alone(forty, name):
    figure = Figure()
    ax = figure.subplots(1, 2) if name == "before_after" else figure.subplots()
    before = dict(matplotlib.rcParams)
    result = PLOTS[name](forty, ax=ax)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    for given, returned in zip(axes_of(ax), axes_of(result), strict=True):
        assert returned is given
        assert isinstance(returned, Axes)
        assert returned.has_data()


@pytest.mark.parametrize("name", PLOTS)
def test_the_data_are_left_alone(name):
    adata = many(3)
    slots = {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "uns", "layers")}
    x = adata.X.copy()
    PLOTS[name](adata)
    assert {slot: set(getattr(adata, slot)) for slot in slots} == slots
    np.testing.assert_array_equal(adata.X, x)


# What they show


def heatmap(ax):
    return ax.images[0].get_array().data


def test_the_heatmap_holds_d_of_the_genes_that_are_named(forty):
    genes = list(forty.var_names[[7, 2, 30]])
    ax = bioren.pl.batch_effects(forty, genes=genes)
    table = bioren.tl.batch_effects(forty).pivot(index="sample", columns="gene", values="d")
    assert_allclose(heatmap(ax), table[genes])
    assert [label.get_text() for label in ax.get_xticklabels()] == style.shortened(genes, 16)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first sample is on top
    low, high = ax.images[0].get_clim()
    assert low == -high  # white is no effect


def test_the_heatmap_shows_the_most_affected_genes_of_each_sample():
    adata = many(3, n_genes=40)
    record = adata.uns["bioren"]
    record["d"][:] = 0.001
    record["standard_error_d"][:] = 0.1
    for sample, gene in ((0, 5), (1, 9), (2, 33)):
        record["d"][sample, gene] = (-1) ** sample * 3
    record["d"][0, 20], record["standard_error_d"][0, 20] = 50, 40  # large, but may be chance
    ax = bioren.pl.batch_effects(adata, n_genes=3)
    assert sorted(np.abs(heatmap(ax)).argmax(axis=0)) == [0, 1, 2]
    assert_allclose(np.abs(heatmap(ax)).max(axis=0), 3)
    # What may be chance has a dot.
    assert len(ax.collections[0].get_offsets()) == 6


def test_the_sample_that_stands_out_is_named_and_on_top(forty):
    ax = bioren.pl.samples(forty)
    colors = {label.get_text(): label.get_color() for label in ax.get_yticklabels()}
    first = ax.get_yticklabels()[0].get_text()
    assert first.startswith("donor01")
    assert first.endswith("(12)")
    assert [name for name, color in colors.items() if color != "black"] == [first]
    shift = ax.collections[1].get_offsets()[:, 0]
    assert (np.diff(shift) <= 0).all()


def test_limits_and_what_they_held_back(forty):
    ax = bioren.pl.limits(forty)
    lines = [line.get_xdata()[0] for line in ax.lines]
    assert lines == [1.0]
    held_back = [text.get_text() for text in ax.texts[:-1]]
    assert float(held_back[1].rstrip("%")) > 50 > float(held_back[0].rstrip("%"))
    assert [line.get_xdata()[0] for line in bioren.pl.limits(forty, of="r").lines] == [1, 0.5, 2]


def test_no_limit_no_line():
    adata = simulate()
    bioren.pp.bridge(adata, "sample", max_removed=None)
    for of, lines in (("d", 0), ("r", 1)):  # r has a line at 1
        ax = bioren.pl.limits(adata, of=of)
        assert len(ax.lines) == lines
        assert ax.get_title(loc="left") == "no limit"


def test_the_history_marks_the_epoch_that_was_kept(forty):
    ax = bioren.pl.training_history(forty)
    assert_allclose(ax.lines[1].get_ydata(), [0.95, 0.9, 0.85, 0.87])
    assert set(ax.lines[2].get_xdata()) == {2}


def test_before_are_the_principal_components_of_the_variable_genes():
    adata = many(3)
    one = bioren.pl.before_after(adata)[0]
    centered = adata.X - adata.X.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    expected = np.abs(u[:, :2] * s[:2])
    drawn = np.concatenate([c.get_offsets() for c in one.collections])
    assert_allclose(np.sort(np.abs(drawn[:, 0])), np.sort(expected[:, 0]), rtol=1e-4, atol=1e-4)
    # Where components are there, these are drawn.
    adata.obsm["X_pca"] = np.arange(2.0 * adata.n_obs).reshape(-1, 2)
    one = bioren.pl.before_after(adata)[0]
    drawn = np.concatenate([c.get_offsets() for c in one.collections])
    assert_allclose(np.sort(drawn[:, 0]), adata.obsm["X_pca"][:, 0])


def test_cells_are_colored_by_any_column():
    adata = many(3)
    adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["kind"] = pd.Categorical([None, "b", "a"] * 12, categories=["a", "b", "never"])
    figure = bioren.pl.before_after(adata, color="depth")[0].figure
    assert [ax.get_ylabel() for ax in figure.axes][2] == "depth"  # the color bar
    names = [
        text.get_text() for text in bioren.pl.before_after(adata, color="kind")[1].legend_.texts
    ]
    assert names == ["a", "b", "missing"]
    adata.uns["bioren"]["batch_key"] = np.array(["sample", "kind"], dtype=object)
    adata.obs["kind"] = ["x", "y", "x"] * 12
    names = [text.get_text() for text in bioren.pl.before_after(adata)[1].legend_.texts]
    assert "donor000 + x" in names


def test_colors_and_shapes_tell_forty_categories_apart():
    assert len({style.category_style(number) for number in range(40)}) == 40


def test_names_are_shortened_in_the_middle_unless_two_read_the_same():
    names = ["a" * 30 + "1", "a" * 30 + "2"]
    short = style.shortened(names, 10)
    assert [len(name) for name in short] == [10, 10]
    assert short[0] != short[1]
    alike = ["a" * 20 + c + "a" * 20 for c in "xy"]
    assert style.shortened(alike, 10) == alike


# Bad input


@pytest.mark.parametrize("name", PLOTS)
def test_without_a_record(name):
    with pytest.raises(KeyError, match=r"uns\['bioren'\] holds no .*integrate"):
        PLOTS[name](simulate())


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("batch_effects", {"genes": ["gene3", "gnee4"]}, KeyError, "did you mean 'gene4'"),
        ("batch_effects", {"genes": []}, ValueError, "genes is empty"),
        ("batch_effects", {"n_genes": 0}, ValueError, "n_genes must be 1 or more, received 0"),
        ("limits", {"of": "x"}, ValueError, "of='x': name 'd'"),
        ("training_history", {}, KeyError, "no training history"),
        ("before_after", {}, KeyError, "no embedding 'X_bioren'"),
        ("before_after", {"color": "tpye"}, KeyError, "did you mean 'type'"),
        ("before_after", {"ax": [1, 2, 3]}, ValueError, "draws on two axes, received 3"),
    ],
)
def test_bad_input(name, options, error, words):
    adata = simulate()
    bioren.pp.bridge(adata, "sample")
    if "color" in options:
        adata.obsm["X_bioren"] = adata.X[:, :3]
    with pytest.raises(error, match=words):
        PLOTS[name](adata, **options)
    assert plt.get_fignums() == []


def test_counts_have_no_components():
    adata = many(3)
    adata.X = np.random.default_rng(0).poisson(5, adata.shape).astype(float)
    with pytest.raises(ValueError, match="look like counts"):
        bioren.pl.before_after(adata)
