"""The structure: floors, what an import costs, how public functions are called."""

import importlib
import inspect
from importlib.resources import files

import pytest
from imported import imported_by

import bioren

FUNCTIONS = {
    "pp.bridge": bioren.pp.bridge,
    "tl.integrate": bioren.tl.integrate,
    "tl.batch_effects": bioren.tl.batch_effects,
    **{f"pl.{name}": getattr(bioren.pl, name) for name in bioren.pl.__all__},
    **{f"datasets.{name}": getattr(bioren.datasets, name) for name in bioren.datasets.__all__},
    **{
        f"{cls.__name__}.{name}": member
        for cls in (bioren.RenormAutoencoder, bioren.BridgeTransformer, bioren.AffineBridge)
        for name, member in inspect.getmembers(cls, callable)
        if name in cls.__dict__ and not name.startswith(("_", "set_"))
    },
}


def test_layers_need_neither_anndata_nor_plots():
    modules = imported_by("import bioren.nn")
    assert modules.isdisjoint({"anndata", "scanpy", "pandas", "matplotlib"})
    assert "torch" in modules


def test_the_package_alone_imports_nothing_heavy():
    heavy = {"torch", "numpy", "scipy", "anndata", "scanpy", "pandas", "matplotlib", "sklearn"}
    assert imported_by("import bioren").isdisjoint(heavy)


def test_anndata_functions_bring_no_plots_along():
    assert "scanpy" not in imported_by("import bioren; bioren.tl.integrate, bioren.pp.bridge")


@pytest.mark.parametrize("name", bioren.__all__)
def test_public_names_resolve_and_are_listed(name):
    assert getattr(bioren, name) is not None
    assert name in dir(bioren)


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ppp'"):
        _ = bioren.ppp


@pytest.mark.parametrize(
    "module", ["preprocessing", "tools", "plotting", "datasets", "nn", "bridge", "arrays.moments"]
)
def test_every_name_in_all_exists(module):
    module = importlib.import_module(f"bioren.{module}")
    assert module.__all__
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_three_positional_arguments(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    by_position = [
        p.name
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in ("self", "cls")
    ]
    assert len(by_position) <= 3


@pytest.mark.parametrize("name", [*FUNCTIONS, "RenormAutoencoder", "BridgeTransformer"])
def test_docstrings_describe_every_parameter(name):
    function = FUNCTIONS.get(name) or getattr(bioren, name)
    documented = inspect.getdoc(function)
    parameters = set(inspect.signature(function).parameters) - {"self", "y"}
    if (
        parameters <= {"X", "batch", "x", "other", "adata", "batch_key"}
        and "Parameters" not in documented
    ):
        return  # said where these are first described, and in the summary line
    _, _, section = documented.partition("Parameters\n----------\n")
    section = section.partition("\n\nReturns\n")[0]
    named = {
        part.strip()
        for line in section.splitlines()
        if line and not line.startswith(" ")
        for part in line.split(",")
    }
    assert parameters <= named


def test_types_are_shipped():
    assert (files("bioren") / "py.typed").is_file()


def test_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert version("bioren") == bioren.__version__
