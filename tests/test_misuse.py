"""What is given by mistake: one line of ours, and what to give instead."""

from pathlib import Path

import numpy as np
import pytest
import scanpy as sc
from simulation import simulate, sparse_like
from small import described, fit

import bioren


@pytest.fixture(scope="module")
def model():
    return fit(described((40, 30)), learn=False)


def one_line(kind, call):
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    return message


GIVEN = [
    ("cells.h5ad", "anndata.read_h5ad('cells.h5ad')"),
    (Path("cells.h5ad"), "anndata.read_h5ad('cells.h5ad')"),
    ("sample", "The AnnData comes first"),
    (None, "copy=True"),
    (np.ones((4, 3)), "ndarray of shape (4, 3). A matrix needs"),
    (simulate().X, "anndata.AnnData(x"),
    (simulate().obs, "a DataFrame of shape (120, 2)"),
]
FUNCTIONS = {
    "tl.integrate": lambda given: bioren.tl.integrate(given, "sample"),
    "tl.integrate_embedding": lambda given: bioren.tl.integrate_embedding(given, "sample", "X_pca"),
    "tl.batch_effects": bioren.tl.batch_effects,
    "tl.diagnose": bioren.tl.diagnose,
    "tl.map_query": lambda given: bioren.tl.map_query(given, "model.bioren"),
    "pp.bridge": lambda given: bioren.pp.bridge(given, "sample"),
    "pl.samples": bioren.pl.samples,
    "pl.training_history": bioren.pl.training_history,
    "RenormAutoencoder.fit": lambda given: bioren.RenormAutoencoder().fit(given, "sample"),
}


@pytest.mark.parametrize(("given", "words"), GIVEN, ids=[str(type(g[0])) for g in GIVEN])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_anndata(name, given, words):
    message = one_line(TypeError, lambda: FUNCTIONS[name](given))
    assert message.startswith("Expected an AnnData, received ")
    assert words in message


@pytest.mark.parametrize("name", ["embed", "correct", "decode", "map"])
def test_what_is_no_anndata_for_a_model(model, name):
    message = one_line(TypeError, lambda: getattr(model, name)(np.ones((5, 4))))
    assert "received an ndarray of shape (5, 4)" in message
    assert ("reads the cells' expression" in message) == (name != "map")
    assert "read_h5ad" in one_line(TypeError, lambda: getattr(model, name)("cells.h5ad"))
    assert "Expected an AnnData" in one_line(TypeError, lambda: model.learn_labels(3, "known"))


def test_swapped_arguments(model):
    adata = simulate()
    message = one_line(TypeError, lambda: bioren.tl.integrate("sample", adata))
    assert "received the text 'sample'. The AnnData comes first" in message
    message = one_line(TypeError, lambda: bioren.tl.map_query(model, adata))
    assert "a RenormAutoencoder. The AnnData comes first, and then the model" in message
    message = one_line(TypeError, lambda: bioren.tl.map_query(adata, adata))
    assert "Expected a model or the path of its file, received AnnData" in message
    message = one_line(TypeError, lambda: bioren.tl.integrate(adata, adata.obs["sample"]))
    assert "received a value of type Series (its name is 'sample')" in message


@pytest.mark.parametrize(
    ("kind", "option", "words"),
    [
        (TypeError, {"n_latent": "x"}, "n_latent must be a whole number, such as 20, received 'x'"),
        (TypeError, {"n_latent": 2.5}, "received 2.5"),
        (ValueError, {"n_latent": 1}, "n_latent must be 2 or more"),
        (TypeError, {"max_removed": 2}, "max_removed must be two numbers, (r_max, d_max), such as"),
        (TypeError, {"max_removed": (2,)}, "received (2,)"),
        (TypeError, {"max_removed": "ab"}, "received 'ab'"),
        (ValueError, {"max_removed": (0.5, 1)}, "r_max >= 1"),
        (TypeError, {"strength": "half"}, "strength must be a number in [0, 1], received 'half'"),
        (TypeError, {"strength": None}, "received None"),
    ],
)
def test_settings_of_another_kind(kind, option, words):
    adata = simulate()
    assert words in one_line(kind, lambda: bioren.tl.integrate(adata, "sample", **option))
    if "n_latent" not in option:
        assert words in one_line(kind, lambda: bioren.pp.bridge(adata, "sample", **option))
        transformer = bioren.BridgeTransformer(**option)
        x, batch = adata.X, adata.obs["sample"]
        assert words in one_line(kind, lambda: transformer.fit(x, batch=batch))
    assert set(adata.uns) == {"planted_shift"}


def test_more_dimensions_than_genes_allow_are_told():
    with pytest.warns(UserWarning, match="n_latent=50: 10 variable genes allow no more than 9 di"):
        bioren.tl.integrate(adata := simulate(n_genes=10), "sample", n_latent=50, progress=False)
    assert adata.obsm["X_bioren"].shape[1] == 9
    bioren.tl.integrate(adata, "sample", progress=False)  # the default asks for none


def test_a_quantity_as_the_batch_is_told():
    adata = simulate()
    adata.obs["score"] = np.arange(120) % 4 / 4
    with pytest.warns(
        UserWarning, match=r"holds floating-point numbers \(float64\).*each of 4 val"
    ):
        bioren.pp.bridge(adata, "score")
    adata.obs["run"] = np.arange(120) % 4
    bioren.pp.bridge(adata, "run")


# Standardized values


def test_standardized_values_are_told(correct):
    adata = sparse_like(simulate((200, 200)))
    sc.pp.scale(adata)
    with pytest.warns(UserWarning, match=r"look standardized gene by gene: 100% of 20 genes"):
        correct(adata, "sample")


@pytest.mark.parametrize("options", [{"max_value": 3}, {"zero_center": False}])
def test_clipped_ones_and_such_with_zeros_are_told(options):
    adata = sparse_like(simulate((200, 200)))
    sc.pp.scale(adata, **options)
    with pytest.warns(UserWarning, match=r"look standardized .* adata\.raw"):
        bioren.pp.bridge(adata, "sample")


def test_centered_values_are_not(correct):
    adata = simulate((200, 200))
    adata.X = (adata.X - adata.X.mean(axis=0)).astype(np.float32)
    correct(adata, "sample")


def test_standardized_queries_are_told():
    adata = described((60, 60))
    model = fit(adata, learn=False)
    query = described((90,))
    sc.pp.scale(query)
    with pytest.warns(UserWarning, match="look standardized"):
        model.map(query)
