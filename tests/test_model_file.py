"""A model's file: what is loaded is the model; what is published tells nothing of few cells."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small import described, fit, query

import bioren
from bioren.files.container import read

FEW = 9  # cells of the sample that is too small to be published


@pytest.fixture(scope="module")
def adata():
    adata = described((60, 50, 40, FEW))
    adata.obs["lab"] = np.arange(adata.n_obs) % 2
    adata.obs["control"] = np.arange(adata.n_obs) % 3 > 0
    adata.layers["log"] = adata.X + 0.5
    return adata


@pytest.fixture(scope="module")
def cells():
    cells = query()
    cells.layers["log"] = cells.X
    return cells


@pytest.fixture(scope="module")
def model(adata):
    return fit(adata, labels_key="known", covariates=["depth"])


def saved(model, folder):
    """Return the model as its file has it."""
    model.save(folder / "saved model", overwrite=True)
    return bioren.load(folder / "saved model")


def assert_same(first, second, where="model"):
    """Compare anything that a model holds, exactly."""
    if isinstance(first, torch.nn.Module):
        first, second = dict(first.state_dict()), dict(second.state_dict())
    if isinstance(first, torch.Tensor):
        first, second = first.numpy(), second.numpy()
    if isinstance(first, np.generic) and isinstance(second, np.ndarray):
        first = np.asarray(first)  # NumPy makes numbers of arrays without axes
    if type(second) is float:
        first = float(first)  # a setting may be given as any number
    assert type(first) is type(second), where
    if isinstance(first, np.ndarray):
        assert_array_equal(first, second, err_msg=where, strict=True)
    elif isinstance(first, pd.DataFrame | pd.Series | pd.Index):
        assert first.equals(second), where
    elif dataclasses.is_dataclass(first):
        for field in dataclasses.fields(first):
            inside = getattr(first, field.name), getattr(second, field.name)
            assert_same(*inside, f"{where}.{field.name}")
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, inside in enumerate(zip(first, second, strict=True)):
            assert_same(*inside, f"{where}[{i}]")
    else:
        assert first == second or (first != first and second != second), where


def assert_maps_alike(first, second, cells, **options):
    assert_same(first.map(cells, **options), second.map(cells, **options), "mapped")


# Saved and loaded

OPTIONS = {
    "plain": {},
    "labels": {"labels_key": "known", "covariates": ["depth"]},
    "one covariate twice": {"covariates": ["depth", "depth"]},
    "controls": {"controls_key": "control"},
    "several keys": {"batch_key": ["sample", "lab"]},
    "reference": {"reference": ["a", "b"], "settings": {"rng": 7}},
    "layer": {"layer": "log", "settings": {"strength": 0.5}},
    "nothing removed": {"settings": {"strength": 0, "max_removed": None}},
    "limits": {"settings": {"max_removed": (2, 0.5)}},
    "numbers of numpy": {
        "settings": {"strength": np.float32(0.5), "max_removed": (np.int64(2), np.float32(0.5))}
    },
    "generator": {"settings": {"rng": np.random.default_rng(7)}},
    "components alone": {"epochs": 0, "learn": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_all_that_was_fitted_comes_back(adata, cells, tmp_path, options):
    fitted = fit(adata, **options)
    loaded = saved(fitted, tmp_path)
    for apply in ("embed", "correct", "decode"):
        assert_same(getattr(fitted, apply)(adata), getattr(loaded, apply)(adata), apply)
    layer = options.get("layer")
    assert_maps_alike(fitted, loaded, cells, batch_key="sample", layer=layer)

    fields = {field.name for field in dataclasses.fields(fitted.fitted_)}
    # How it was trained is no part of the file; the other settings are compared below.
    for name in fields - {"settings"}:
        assert_same(getattr(fitted.fitted_, name), getattr(loaded.fitted_, name), name)
    public = [name for name in dir(type(fitted)) if name.endswith("_") and name[0] != "_"]
    assert len(public) >= 10
    for name in public:
        assert_same(getattr(fitted, name), getattr(loaded, name), name)
    for name in ("n_latent", "n_hidden", "strength", "max_removed"):
        assert getattr(fitted, name) == getattr(loaded, name)
    assert isinstance(loaded.rng, np.random.Generator) or loaded.rng == fitted.rng
    assert fitted.population_.digest == loaded.population_.digest
    assert repr(fitted) == repr(loaded)

    before = (tmp_path / "saved model").read_bytes()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == before
    fitted.save(tmp_path / "saved model", overwrite=True)
    assert (tmp_path / "saved model").read_bytes() == before


@pytest.mark.parametrize("sizes", [(60,), (60, 1, 2), (2, 2)], ids=str)
def test_samples_of_few_cells(tmp_path, cells, sizes):
    adata = described(sizes)
    fitted = fit(adata, learn=False)
    loaded = saved(fitted, tmp_path)
    assert_same(fitted.correct(adata), loaded.correct(adata))
    assert_maps_alike(fitted, loaded, cells, batch_key="sample")


def test_samples_that_lie_apart(tmp_path, cells):
    adata = described((40, 40), composition=[[1, 0, 0], [0, 0, 1]], shift=5)
    with pytest.warns(UserWarning, match="2 of 2 samples have hardly a cell state in common"):
        fitted = fit(adata)
    loaded = saved(fitted, tmp_path)
    assert_same(fitted.embed(adata), loaded.embed(adata))
    assert_maps_alike(fitted, loaded, cells, batch_key="sample")


def test_names_of_any_kind(adata, tmp_path):
    other = adata.copy()
    names = ["", "ä\u0301 \u2028", "\U0001f9ec", 'a"b\\c\n']
    other.obs["sample"] = other.obs["sample"].cat.rename_categories(names)
    other.var_names = [f"{name}{i}" for i, name in zip(range(20), names * 5, strict=True)]
    fitted = fit(other)
    loaded = saved(fitted, tmp_path)
    assert loaded.samples_ == names
    assert_same(fitted.embed(other), loaded.embed(other))


def test_saving_and_loading_change_nothing(model, adata, tmp_path):
    digest, state = model.population_.digest, torch.random.get_rng_state()
    model.network_.train()
    loaded = saved(model, tmp_path)
    model.publish(tmp_path / "published")
    assert model.network_.training
    assert not loaded.network_.training
    model.network_.eval()
    assert model.population_.digest == digest
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loaded_model_lives_on(model, adata, cells, tmp_path):
    loaded = saved(model, tmp_path)
    assert_same(model.embed(adata), saved(loaded, tmp_path).embed(adata))
    loaded.learn_labels(adata, "type")
    assert list(loaded.map(cells, batch_key="sample").labels) == ["known", "type"]
    assert list(saved(loaded, tmp_path).map(cells, batch_key="sample").labels) == ["known", "type"]
    loaded.fit(adata, "sample")
    assert loaded.fitted_.columns.covariates == []


def test_after_samples_were_added(model, adata, cells, tmp_path):
    grown = saved(model, tmp_path).add(model.map(cells, batch_key="sample"), ["x", "y"])
    loaded = saved(grown, tmp_path)
    assert loaded.population_.samples == ["a", "b", "c", "d", "x", "y"]
    assert loaded.samples_ == model.samples_
    assert_same(loaded.embed(adata), model.embed(adata))
    assert_maps_alike(grown, loaded, cells, batch_key="sample")
    assert not np.array_equal(loaded.map(cells).embedding, model.map(cells).embedding)


def test_a_model_without_finite_weights_is_not_saved(adata, tmp_path):
    broken = fit(adata)
    with torch.no_grad():
        broken.network_.encoder[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"saved model cannot be written: network/encoder\.0"):
        saved(broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_fitted_is_not_saved(tmp_path):
    for write in (bioren.RenormAutoencoder().save, bioren.RenormAutoencoder().publish):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            write(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_asked(model, tmp_path):
    path = tmp_path / "model"
    path.write_text("precious")
    for write in (model.save, model.publish, model.population_.save, model.population_.publish):
        with pytest.raises(FileExistsError, match="exists already"):
            write(path)
        assert path.read_text() == "precious"
    for write in (model.save, model.publish, model.population_.save, model.population_.publish):
        write(path, overwrite=True)
        assert bioren.Population.load(path).genes.equals(model.genes_)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_are_interchangeable(model, adata, cells, tmp_path):
    model.save(tmp_path / "cpu")
    there = bioren.load(tmp_path / "cpu")
    there.network_.to("cuda")
    assert_allclose(there.embed(adata), model.embed(adata), atol=1e-4)
    found = there.map(cells, batch_key="sample")
    assert_allclose(found.embedding, model.map(cells, batch_key="sample").embedding, atol=1e-4)
    there.save(tmp_path / "cuda")
    assert (tmp_path / "cuda").read_bytes() == (tmp_path / "cpu").read_bytes()
    assert next(bioren.load(tmp_path / "cuda").network_.parameters()).device.type == "cpu"


def test_a_network_in_double_precision_is_saved_as_such_and_loaded_in_single(
    model, cells, tmp_path
):
    doubled = saved(model, tmp_path)
    doubled.network_.to(torch.float64)
    loaded = saved(doubled, tmp_path)
    assert next(loaded.network_.parameters()).dtype == torch.float32
    assert_maps_alike(model, loaded, cells, batch_key="sample")


def test_size_of_a_file(tmp_path):
    from simulation import simulate

    adata = simulate((30, 30, 30, 30), n_genes=2000)
    training = bioren.network.training.TrainingOptions(max_epochs=0, progress=False)
    fitted = bioren.RenormAutoencoder(training=training).fit(adata, "sample")
    fitted.save(tmp_path / "model")
    fitted.publish(tmp_path / "published")
    assert (tmp_path / "model").stat().st_size < 20e6
    assert (tmp_path / "published").stat().st_size < (tmp_path / "model").stat().st_size


# Published


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "published.bioren"
    model.publish(path)
    return path


@pytest.fixture
def published(path):
    return bioren.load(path)


def test_publishes_a_model_that_maps_alike(model, published, cells):
    ours, theirs = (m.map(cells, batch_key="sample") for m in (model, published))
    spread = model.map(cells).embedding.std()
    assert_allclose(theirs.embedding, ours.embedding, atol=0.1 * spread)
    assert_allclose(theirs.corrected, ours.corrected, atol=0.3)
    assert_allclose(theirs.score, ours.score, atol=0.1)
    assert (theirs.labels["known"][0] == ours.labels["known"][0]).mean() > 0.95
    assert theirs.genes.reference.tolist() == ours.genes.reference.tolist()


def test_published_models_map_alike_but_for_rounding(tmp_path, cells):
    # Nothing is left out, and samples of any size weigh as they did.
    fitted = fit(described((100, 60, 20)))
    fitted.publish(tmp_path / "published", min_cells=3)
    theirs = bioren.load(tmp_path / "published")
    assert theirs.population_.by_state.count.shape[1] == fitted.population_.by_state.count.shape[1]
    ours, theirs = (m.map(cells, batch_key="sample") for m in (fitted, theirs))
    assert_allclose(theirs.embedding, ours.embedding, atol=1e-4)
    assert_allclose(theirs.corrected, ours.corrected, atol=1e-4)
    assert_allclose(theirs.score, ours.score, atol=1e-4)
    assert_allclose(theirs.alignment.d, ours.alignment.d, atol=1e-4)


@pytest.mark.parametrize("apply", ["embed", "correct", "decode"])
def test_published_models_know_no_samples(published, adata, apply):
    with pytest.raises(RuntimeError, match="published without its samples: it can map others"):
        getattr(published, apply)(adata)
    with pytest.raises(RuntimeError, match="published without its samples"):
        published.learn_labels(adata, "type")
    assert repr(published).endswith("published, 3 samples, 20 genes")
    assert published.samples_ == []


def test_samples_that_are_told_have_enough_cells(published):
    assert published.population_.published == {"a": 60, "b": 50, "c": 40}
    assert published.population_.cells.to_dict() == {"a": 60, "b": 50, "c": 40}


#: Arrays whose first axis is the samples.
OF_SAMPLES = (
    "alignment/|expression/|diagnosis/|population/(count|mean|m2|scale|shift)"
    "|states/(kept|specific|inlier_weight|./(log_odds|shifts|levels))|network/(bridge.sample|hidden_bridge|output_bridge)"
)


def test_nothing_of_single_samples_is_in_the_file(model, adata, path, tmp_path):
    content = path.read_bytes()
    model.save(tmp_path / "model")
    whole, shared = (read(p, ("model",)) for p in (tmp_path / "model", path))
    rows = 0
    for name, array in whole.arrays.items():
        # Rows that stand for a sample, or for a sample in a state, in either precision.
        if array.shape[:1] != (4,) or not re.match(OF_SAMPLES, name):
            continue
        for row in array.reshape(-1, array.shape[-1]):
            if len(np.unique(row)) < 3:
                continue  # such as a row of ones: tells nothing
            rows += 1
            for dtype in (np.float32, np.float64):
                assert row.astype(dtype).tobytes() not in content, name
    assert rows > 100
    for sample in "abcd":
        of_sample = adata.X[(adata.obs["sample"] == sample).to_numpy()]
        for moments in (of_sample.mean(axis=0), of_sample.var(axis=0), of_sample.std(axis=0)):
            for array in shared.arrays.values():
                if array.size and array.ndim and array.shape[-1] == 20:
                    apart = np.abs(array.reshape(-1, 20) - moments).max(axis=1)
                    assert apart.min() > 1e-2
    assert not [name for name in shared.arrays if re.match("alignment|expression|diagnosis", name)]
    assert not {"history/epoch", "own_samples"} & set(shared.arrays)


def test_names_of_small_samples_are_not_in_the_file(adata, tmp_path):
    named = adata.copy()
    names = {"a": "first", "b": "second", "c": "third", "d": "secretive"}
    named.obs["sample"] = named.obs["sample"].cat.rename_categories(names)
    fitted = fit(named)
    fitted.publish(tmp_path / "model")
    fitted.population_.publish(tmp_path / "population")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"first" in content
        assert b"secretive" not in content


def test_labels_that_few_cells_had_are_not_in_the_file(adata, tmp_path):
    # Labels within which samples were compared serve no mapping; those learned are asked for.
    labeled = adata.copy()
    labeled.obs["fine"] = labeled.obs["type"].astype(object)
    labeled.obs.loc[labeled.obs_names[[0, 30, 60, 90, 120]], "fine"] = "hush"
    fitted = fit(labeled, labels_key="fine", learn=False)
    assert "hush" in fitted.fitted_.labels
    fitted.publish(tmp_path / "model")
    assert b"hush" not in (tmp_path / "model").read_bytes()


@pytest.mark.parametrize("min_cells", [3, 10, 25])
def test_states_that_are_told_have_enough_cells(model, tmp_path, min_cells):
    whole = model.population_
    told = whole.cells.to_numpy() >= min_cells
    counts = whole.by_state.count[told].sum(axis=0)
    expected = counts >= min_cells
    model.publish(tmp_path / "model", min_cells=min_cells)
    population = bioren.load(tmp_path / "model").population_
    assert population.by_state.count.shape == (0, expected.sum())
    assert population.pooled.by_state.count.shape == (expected.sum(),)
    assert set(population.published.values()) == set(whole.cells[told])
    model.population_.publish(tmp_path / "population", min_cells=min_cells)
    assert bioren.Population.load(tmp_path / "population").digest == population.digest


def test_counts_in_the_file_are_no_fewer(tmp_path):
    # A state of a sample that is large among small ones.
    shares = [[0.5, 0.46, 0.04], [0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    fitted = fit(described((300, 30, 30, 30), composition=shares), learn=False)
    fitted.publish(tmp_path / "model", min_cells=10)
    assert read(tmp_path / "model", ("model",)).arrays["population/pooled/count"].min() >= 10


@pytest.mark.parametrize("min_cells", [2, 1, 0, -5])
def test_too_few_cells_cannot_be_asked_for(model, tmp_path, min_cells):
    for publish in (model.publish, model.population_.publish):
        with pytest.raises(ValueError, match="min_cells must be 3 or more"):
            publish(tmp_path / "model", min_cells=min_cells)
    assert not list(tmp_path.iterdir())


def test_nothing_is_published_of_too_few_cells(model, tmp_path):
    for publish in (model.publish, model.population_.publish):
        with pytest.raises(ValueError, match="nothing can be published"):
            publish(tmp_path / "model", min_cells=1000)
    assert not list(tmp_path.iterdir())


def test_what_was_published_is_not_published_again(published, tmp_path):
    for publish in (published.publish, published.population_.publish):
        with pytest.raises(ValueError, match="published already: copy its file"):
            publish(tmp_path / "model")
    with pytest.raises(ValueError, match="none can be chosen"):
        published.population_.relative_to("a")


def test_published_models_are_saved_as_they_are(published, path, model, tmp_path):
    published.save(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == path.read_bytes()
    model.publish(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_samples_are_added_to_published_models(published, cells, tmp_path):
    before = published.map(cells, batch_key="sample").embedding
    published.add(published.map(cells, batch_key="sample"), ["x", "y"])
    loaded = saved(published, tmp_path)
    assert loaded.population_.cells.to_dict() == {"a": 60, "b": 50, "c": 40, "x": 15, "y": 10}
    assert_maps_alike(published, loaded, cells, batch_key="sample")
    after = loaded.map(cells, batch_key="sample").embedding
    assert not np.array_equal(after, before)
    assert np.isfinite(after).all()
    for name in ("a", "x"):
        with pytest.raises(ValueError, match="has a sample"):
            loaded.add(loaded.map(cells, batch_key="sample"), [name, "z"])


def test_published_populations_serve_as_reference(model, adata, tmp_path):
    model.population_.publish(tmp_path / "population")
    model.publish(tmp_path / "model")
    found = [
        fit(adata, reference=reference, learn=False).correct(adata)
        for reference in (tmp_path / "population", tmp_path / "model")
    ]
    assert_same(*found)
    whole = fit(adata, reference=model.population_, learn=False).correct(adata)
    assert np.abs(found[0] - whole).mean() < 0.1 * whole.std()
