"""Shapes of arrays are types, which are checked as these tests run."""

import jaxtyping
import numpy as np
import pytest
from imported import imported_by

from bioren.arrays.groups import sample_sums
from bioren.arrays.shapes import CellsByGenes
from bioren.effects.sizes import EffectSizes
from bioren.effects.standardization import overlap_of


def test_an_array_of_other_axes_is_refused():
    share, codes = np.full((6, 2), 0.5), np.array([0, 0, 1, 1, 1, 0])
    assert sample_sums(share, codes, 2).shape == (2, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        sample_sums(share.T, codes, 2)  # states x cells


def test_an_array_of_another_kind_is_refused():
    count = np.ones((3, 4))
    assert overlap_of(count).shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError):
        overlap_of(count > 0)


def test_named_tuples_are_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError):
        EffectSizes(np.ones(3), np.ones(4), 0.0, 0.0)  # of three samples, and of four


def test_a_shape_is_an_array_for_whoever_asks():
    assert isinstance(np.ones((2, 3)), CellsByGenes)
    assert not isinstance(np.ones(3), CellsByGenes)


@pytest.mark.parametrize("statement", ["import bioren", "import bioren.tools"])
def test_users_pay_for_no_checks(statement):
    assert "beartype" not in imported_by(statement)


@pytest.mark.parametrize("statement", ["import bioren", "import bioren.nn", "import bioren.bridge"])
def test_layers_and_formula_know_no_types_of_shapes(statement):
    assert "jaxtyping" not in imported_by(statement)
