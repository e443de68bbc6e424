"""The house rules: where files lie, how long functions are, what is read how often."""

import ast
import pkgutil
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulation import simulate

import bioren
from bioren.adata import matrix
from bioren.effects.states import ConditionalBridge
from bioren.model import fitted, fitting

PACKAGE = Path(bioren.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines_of_code(function, lines):
    """Return the number of lines of a function's body that are neither empty nor words."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    inside = lines[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in inside)


def test_few_files_lie_in_the_hall():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    long = {f.name: n for f in functions(path) if (n := lines_of_code(f, lines)) > 60}
    assert not long


#: Formulas of two pairs, Typer's tables of options, what is made of pairs of one kind.
BY_POSITION = {
    "renorm_terms",
    "clip_terms",
    "by_group",
    "integrate",
    "map_query",
    "effects",
    "write",
    "write_fit",
    "__init__",
    "_new_network",
    "state_shifts",
    "shifts_onto",
    "_scatter",
}
#: In `bioren.nn`: signatures of torch's layers and functions, of autograd and of Triton.
AS_IN_TORCH = {
    "__init__",
    "batch_renorm",
    "instance_renorm",
    "sample_renorm",
    "forward",
    "_kernel",
    "affine",
    "__call__",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_at_most_three_arguments_have_no_name_where_they_are_given(path):
    many = {
        f.name
        for f in functions(path)
        if sum(a.arg not in ("self", "cls") for a in f.args.posonlyargs + f.args.args) > 3
    }
    assert many <= (AS_IN_TORCH if path.is_relative_to(PACKAGE / "nn") else BY_POSITION)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_their_functions_say_what_they_are_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


ROOT = Path(__file__).parent.parent
TEXTS = [
    *MODULES,
    *(path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("tutorials/*.ipynb")),
]


def resolves(name):
    """Return whether a dotted name leads to a module, a class, a function or an attribute."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_names_that_are_written_lead_somewhere(path):
    written = set(re.findall(r"\bbioren(?:\.[A-Za-z]\w*)+", path.read_text(encoding="utf-8")))
    assert not {name for name in written if not resolves(name)}


class Spied(pd.DataFrame):
    """Counts how often each column is read."""

    _metadata = ("reads",)

    @property
    def _constructor(self):
        return pd.DataFrame

    def __getitem__(self, key):
        if isinstance(key, str):
            self.reads[key] += 1
        return super().__getitem__(key)


@pytest.fixture
def described():
    adata = simulate()
    rng = np.random.default_rng(0)
    adata.obs["known"] = adata.obs["type"].astype(str)
    adata.obs["control"] = rng.random(adata.n_obs) < 0.7
    adata.obs["treated"] = rng.choice(["yes", "no"], adata.n_obs)
    adata.obs["score"] = rng.normal(size=adata.n_obs)
    return adata


COLUMNS = {
    "labels_key": "known",
    "controls_key": "control",
    "condition_key": "treated",
    "covariates": ["score"],
}


def test_one_run_reads_each_column_once_looks_at_the_matrix_once_and_encodes_each_cell_once(
    described, monkeypatch
):
    adata, seen = described, Counter()
    spied = Spied(adata.obs)
    spied.reads = Counter()
    adata._obs = spied

    def count(name, function):
        def counted(*args, **kwargs):
            seen[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(matrix, "look_through", count("matrix", matrix.look_through))
    for module in (fitting, fitted):
        monkeypatch.setattr(module, "embed", count("encoder", module.embed))
    monkeypatch.setattr(ConditionalBridge, "place", count("states", ConditionalBridge.place))
    options = bioren.TrainingOptions(max_epochs=2, progress=False)
    bioren.tl.integrate(adata, "sample", **COLUMNS, decoded=True, training=options, progress=False)
    assert seen == {"matrix": 1, "encoder": 1, "states": 1}
    for column in ("sample", "known", "control", "treated", "score"):
        assert spied.reads[column] == 1, column
    assert "bioren_decoded" in adata.obsm
