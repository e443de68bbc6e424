import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bioren.adata.obs import (
    check_condition,
    check_shared,
    read_batches,
    read_controls,
    read_covariates,
    read_labels,
)


def labeled(labels, n_genes=3):
    obs = pd.DataFrame(
        {"sample": pd.Series(labels, dtype=object).to_numpy()},
        index=[f"cell{i}" for i in range(len(labels))],
    )
    return AnnData(np.zeros((len(labels), n_genes), dtype=np.float32), obs=obs)


@given(st.lists(st.sampled_from(["a", "b", "c", 1, "1"]), min_size=8, max_size=30))
def test_names_at_the_codes_are_the_labels(labels):
    labels = [*labels, "a", "a", "b", "b", "c", "c", 1, 1]
    batches = read_batches(labeled(labels), "sample")
    assert [batches.names[code] for code in batches.codes] == list(map(str, labels))
    assert sorted(set(batches.names)) == sorted(set(map(str, labels)))
    assert batches.codes.dtype == np.int64


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.sampled_from("abcd"), min_size=1))
def test_a_models_samples_give_the_codes(names, labels):
    batches = read_batches(labeled(labels), "sample", names=names)
    assert batches.names == list(names)
    assert [names[code] for code in batches.codes] == labels


def test_categories_keep_their_order_and_lose_the_unused():
    adata = labeled(["x", "y", "z"] * 3)
    adata.obs["sample"] = pd.Categorical(adata.obs["sample"], categories=["z", "none", "y", "x"])
    assert read_batches(adata, "sample").names == ["z", "y", "x"]


def test_integers_are_sorted_as_numbers():
    assert read_batches(labeled([10, 9, 2] * 2), "sample").names == ["2", "9", "10"]


def test_many_categories_need_more_than_eight_bits():
    batches = read_batches(labeled([i % 300 for i in range(600)]), "sample")
    assert_array_equal(batches.codes, np.arange(600) % 300)


def test_sample_unknown_to_a_model_names_the_known():
    with pytest.raises(ValueError, match=r"not fitted on: x\. It knows a, b\."):
        read_batches(labeled(["a", "x"]), "sample", names=["a", "b"])


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("b", [0, 1, 0]), (["a", "c"], [1, 0, 1]), (("c",), [0, 0, 1]), (pd.Index(["a"]), [1, 0, 0])],
)
def test_reference_selects_samples(reference, expected):
    batches = read_batches(labeled(list("abc") * 2), "sample")
    assert_array_equal(batches.select(reference), np.array(expected, dtype=bool))
    assert batches.select(None) is None


# Several columns


def described(**columns):
    n_cells = len(next(iter(columns.values())))
    return AnnData(
        np.zeros((n_cells, 2)),
        obs=pd.DataFrame(columns, index=[f"cell{i}" for i in range(n_cells)]),
    )


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(8, 11), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_each_combination_of_columns_is_a_sample(rows):
    rows = [*rows, *[("a", 8, True), ("b", 9, False)] * 16]
    donor, number, flag = map(list, zip(*rows, strict=True))
    adata = described(donor=pd.Categorical(donor), number=number, flag=flag)
    batches = read_batches(adata, ["donor", "number", "flag"])
    expected = [f"{d} + {n} + {f}" for d, n, f in rows]
    assert [batches.names[code] for code in batches.codes] == expected
    assert batches.names == [f"{d} + {n} + {f}" for d, n, f in sorted(set(rows))]
    assert batches.key == ["donor", "number", "flag"]
    adata.obs["joined"] = pd.Categorical(expected, categories=batches.names)
    assert_array_equal(read_batches(adata, "joined").codes, batches.codes)


@pytest.mark.parametrize("wrap", [list, tuple])
def test_a_list_of_one_column_is_that_column(wrap):
    adata = labeled(list("abc") * 3)
    one, several = read_batches(adata, "sample"), read_batches(adata, wrap(["sample"]))
    assert several.names == one.names
    assert_array_equal(several.codes, one.codes)


def test_a_models_samples_may_be_combinations():
    adata = described(donor=["x", "y", "x"], lab=[1, 2, 2])
    batches = read_batches(adata, ["donor", "lab"], names=["y + 2", "x + 1", "x + 2"])
    assert_array_equal(batches.codes, [1, 0, 2])
    with pytest.raises(ValueError, match=r"not fitted on: x \+ 1\. It knows x \+ 2, y \+ 2\."):
        read_batches(adata, ["donor", "lab"], names=["x + 2", "y + 2"])


def test_combinations_keep_the_order_of_the_categories():
    donor = pd.Categorical(["x", "y"] * 4, categories=["y", "unused", "x"])
    batches = read_batches(described(donor=donor, lab=[10, 10, 9, 9] * 2), ["donor", "lab"])
    assert batches.names == ["y + 9", "y + 10", "x + 9", "x + 10"]


def test_combinations_that_read_the_same_are_refused():
    adata = described(donor=["x", "x + y"] * 4, lab=["y + z", "z"] * 4)
    with pytest.raises(ValueError, match=r"Two combinations .* read the same"):
        read_batches(adata, ["donor", "lab"])


def test_a_cell_needs_a_label_in_each_column():
    adata = described(donor=["x", None, "y", "y"] * 2, lab=[1, 2, np.nan, 2] * 2)
    with pytest.raises(ValueError, match=r"no label for 4 of 8 cells.*notna\(\)\.all\(axis=1\)"):
        read_batches(adata, ["donor", "lab"])
    kept = adata[adata.obs[["donor", "lab"]].notna().all(axis=1)]
    assert read_batches(kept, ["donor", "lab"]).names == ["x + 1.0", "y + 2.0"]


@pytest.mark.parametrize("key", [3, None, {"sample"}, ["sample", 3], [["sample"]]])
def test_what_names_no_column_is_refused(key):
    with pytest.raises(TypeError, match=r"name a column of adata\.obs, or be a list of such"):
        read_batches(labeled(list("ab") * 3), key)


def test_no_column_and_missing_columns_are_refused():
    adata = labeled(list("ab") * 3)
    with pytest.raises(ValueError, match="empty list"):
        read_batches(adata, [])
    with pytest.raises(KeyError, match=r"'sampel'; did you mean 'sample'\?"):
        read_batches(adata, ["sample", "sampel"])


# Labels


@given(st.lists(st.sampled_from(["T", "B", "NK", None]), max_size=30))
def test_labels_are_codes_of_names_and_missing_ones_are_minus_one(labels):
    labels = [*labels, "T"]
    codes, names = read_labels(labeled(labels), "sample")
    assert [names[code] if code >= 0 else None for code in codes] == labels
    assert names == sorted(set(labels) - {None})
    assert codes.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (pd.Categorical(["b", "a", None], categories=["c", "b", "a"]), ["b", "a"], [0, 1, -1]),
        ([3, 20, 3], ["3", "20"], [0, 1, 0]),
        (pd.array([1, None, 2], dtype="Int64"), ["1", "2"], [0, -1, 1]),
        (pd.array(["x", None, "y"], dtype="string"), ["x", "y"], [0, -1, 1]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        (np.array([1, "1", np.nan], dtype=object), ["1"], [0, 0, -1]),
    ],
    ids=["category", "int", "Int64", "string", "bool", "mixed"],
)
def test_labels_of_any_kind(labels, names, expected):
    codes, found = read_labels(described(type=labels), "type")
    assert found == names
    assert_array_equal(codes, expected)


def test_labels_that_a_model_does_not_know_count_as_missing():
    adata = described(type=["B", "T", "new", None])
    codes, names = read_labels(adata, "type", names=["T", "never", "B"])
    assert_array_equal(codes, [2, 0, -1, -1])
    assert names == ["T", "never", "B"]
    codes, _ = read_labels(described(type=[None, None]), "type", names=["T"])
    assert_array_equal(codes, [-1, -1])


def test_no_label_at_all_and_missing_columns_are_refused():
    with pytest.raises(ValueError, match=r"obs\['type'\] is empty.*Leave it out"):
        read_labels(described(type=[None, np.nan]), "type")
    with pytest.raises(KeyError, match=r"'typ'; did you mean 'type'\?"):
        read_labels(described(type=["a", "b"]), "typ")
    with pytest.raises(TypeError, match="labels_key must name one column"):
        read_labels(described(type=["a", "b"]), ["type"])


def test_labels_that_no_two_samples_share_are_refused():
    adata = described(sample=list("aabb"), type=list("TBNM"), some=["T", "B", "N", None])
    batches = read_batches(adata, "sample")
    with pytest.raises(ValueError, match=r"No label of .* occurs in two samples"):
        check_shared("type", read_labels(adata, "type")[0], batches)
    check_shared("some", read_labels(adata, "some")[0], batches)  # unlabeled cells compare
    check_shared("sample", np.array([0, 1, 1, 2]), batches)


# Covariates


def test_covariates_are_columns_of_numbers():
    adata = described(
        depth=np.array([1, 2, 3], dtype=np.int32),
        share=np.array([0.5, 1.5, 2.5], dtype=np.float32),
        cycling=[True, False, True],
        nullable=pd.array([4, 5, 6], dtype="Int64"),
    )
    columns = read_covariates(adata, ["share", "depth", "cycling", "nullable"])
    assert columns.dtype == np.float64
    assert_array_equal(columns, [[0.5, 1, 1, 4], [1.5, 2, 0, 5], [2.5, 3, 1, 6]])
    assert_array_equal(read_covariates(adata, "depth"), columns[:, [1]])
    assert read_covariates(adata, ()).shape == read_covariates(adata, None).shape == (3, 0)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", "b", "c"], r"covariate obs\['c'\] is of type .*expected numbers"),
        (pd.Categorical([1, 2, 1]), "name them among the batch keys"),
        (pd.to_datetime(["2020", "2021", "2022"]), "expected numbers"),
        ([1, np.nan, 3], "missing or infinite in 1 cells"),
        ([1, np.inf, -np.inf], "missing or infinite in 2 cells"),
        (pd.array([None, None, 3], dtype="Int64"), "missing or infinite in 2 cells"),
    ],
    ids=["text", "category", "dates", "missing", "infinite", "Int64"],
)
def test_covariates_that_are_no_finite_numbers_are_refused(column, message):
    with pytest.raises(ValueError, match=message):
        read_covariates(described(c=column, other=[1.0, 2.0, 3.0]), ["other", "c"])


def test_missing_covariates_name_the_choices():
    with pytest.raises(KeyError, match=r"'dept'; did you mean 'depth'\?"):
        read_covariates(described(depth=[1.0, 2.0]), ["dept"])


# Controls


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_controls_are_positions_of_cells(rows):
    samples, marked = map(list, zip(*rows, *[(s, True) for s in "abcabc"], strict=True))
    adata = described(sample=samples, control=marked)
    controls = read_controls(adata, "control", read_batches(adata, "sample"))
    assert_array_equal(controls, [i for i, control in enumerate(marked) if control])


@pytest.mark.parametrize("form", [lambda x: pd.array(x, "boolean"), pd.Categorical])
def test_booleans_of_any_kind_are_controls(form):
    adata = described(sample=list("ab") * 2, control=form([True] * 3 + [False]))
    assert_array_equal(read_controls(adata, "control", read_batches(adata, "sample")), [0, 1, 2])


@pytest.mark.parametrize(
    "column",
    [
        ["yes", "no"] * 3,
        [0, 1] * 3,
        pd.array([True, None] * 3, dtype="boolean"),
        np.array([True, None] * 3, dtype=object),
    ],
    ids=["text", "numbers", "missing", "object"],
)
def test_controls_that_are_not_boolean_are_refused(column):
    adata = described(sample=list("aabbcc"), control=column)
    with pytest.raises(ValueError, match=r"obs\['control'\] must say True or False for each cell"):
        read_controls(adata, "control", read_batches(adata, "sample"))


def test_samples_without_a_control_are_named():
    adata = described(sample=list("aabbcc"), control=[True] + [False] * 5)
    with pytest.raises(ValueError, match=r"no control in 2 of 3 samples: b, c\."):
        read_controls(adata, "control", read_batches(adata, "sample"))
    with pytest.raises(KeyError, match=r"'kontrol'; did you mean 'control'\?"):
        read_controls(adata, "kontrol", read_batches(adata, "sample"))


# A condition that is studied


def test_a_condition_that_samples_determine_is_warned_of():
    adata = described(
        sample=list("abcd") * 4,
        treated=[True, False, True, False] * 4,
        crossed=["x"] * 8 + ["y"] * 8,
        missing=["x", None] * 8,
    )
    batches = read_batches(adata, "sample")
    with pytest.warns(UserWarning, match=r"obs\['sample'\] are nested in obs\['treated'\]"):
        check_condition(adata, "treated", batches)
    for harmless in ("crossed", "missing", None):  # warnings are errors
        check_condition(adata, harmless, batches)
    with pytest.raises(KeyError, match="did you mean 'treated'"):
        check_condition(adata, "treatd", batches)
