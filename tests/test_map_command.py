"""`bioren map`, and the models that `bioren integrate` writes: as a user meets them."""

from __future__ import annotations

import html
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from forgery import forge
from scipy import sparse
from typer.testing import CliRunner, Result

import bioren
from bioren.cli.commands import app
from bioren.model import file as model_file

N_GENES = 40


def run(*arguments: object) -> Result:
    """Call the command in this process, on a terminal of 80 columns."""
    return CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(
        app, [str(argument) for argument in arguments]
    )


def counts(n_cells: int, samples: str, *, seed: int, depth: float = 1.0) -> anndata.AnnData:
    """Poisson counts of two cell types; a factor per sample and gene."""
    rng = np.random.default_rng(seed)
    sample, kind = np.arange(n_cells) % len(samples), rng.integers(2, size=n_cells)
    profiles = np.random.default_rng(0).gamma(1, 8, size=(2, N_GENES))
    factor = rng.lognormal(0, 0.3, size=(len(samples), N_GENES))
    x = rng.poisson(depth * profiles[kind] * factor[sample])
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical([samples[s] for s in sample]),
            "type": pd.Categorical([f"type{k}" for k in kind]),
            "numbers": rng.normal(size=n_cells),
        },
        index=[f"{samples}{i}" for i in range(n_cells)],
    )
    names = [f"gene{i}" for i in range(N_GENES)]
    var = pd.DataFrame({"identifier": [f"ENSG{i:08}" for i in range(N_GENES)]}, index=names)
    return anndata.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=var)


def logged(adata: anndata.AnnData, total: float = 1e4) -> anndata.AnnData:
    """Return log-expression, by the formula."""
    adata = adata.copy()
    x = adata.X.toarray().astype(np.float64)
    adata.X = np.log1p(x / x.sum(axis=1, keepdims=True) * total).astype(np.float32)
    return adata


class Files:
    """A reference and a query as they are given, and what `bioren integrate` made of them."""

    def __init__(self, folder: Path) -> None:
        self.reference, self.query = folder / "reference.h5ad", folder / "query.h5ad"
        self.integrated = folder / "integrated.h5ad"
        self.model, self.published = folder / "model.bioren", folder / "published.bioren"
        counts(150, "abc", seed=1).write_h5ad(self.reference)
        counts(60, "xy", seed=2, depth=0.5).write_h5ad(self.query)
        self.result = integrate(
            self.reference,
            self.integrated,
            *("--save-model", self.model, "--publish", self.published, "--learn", "type"),
        )


def integrate(source: Path, target: Path, *options: object) -> Result:
    return run("integrate", source, target, "-b", "sample", "--latent", 4, *options)


def map_onto(model: Path, source: Path, target: Path, *options: object) -> Result:
    return run("map", source, target, "--reference", model, *options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def mapped(files: Files) -> tuple[Result, Path]:
    target = files.query.with_name("mapped.h5ad")
    return map_onto(files.model, files.query, target, "-b", "sample"), target


def entries(folder: Path) -> list[str]:
    """Return the names of all files, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def one_message(result: Result) -> str:
    """Return the error of a failed call: exit code 1, one message, no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    _, _, message = result.stderr.rpartition("Error: ")
    assert message.strip()
    return message


def assert_maps_as(model: Path, expected: Path) -> None:
    query = logged(counts(30, "xy", seed=3))
    first, second = (bioren.load(path) for path in (model, expected))
    assert first.population_.cells.to_dict() == second.population_.cells.to_dict()
    assert first.population_.published == second.population_.published
    found = first.map(query).embedding
    np.testing.assert_allclose(found, second.map(query).embedding, atol=1e-3)


class TestIntegrateWritesModels:
    def test_succeeds_and_says_what_it_wrote(self, files: Files) -> None:
        assert files.result.exit_code == 0, files.result.output
        last = files.result.stdout.splitlines()[-3:]
        for line, path in zip(last, (files.integrated, files.model, files.published), strict=True):
            assert str(path) in line

    def test_the_model_is_that_of_the_output(self, files: Files) -> None:
        adata, model = anndata.read_h5ad(files.integrated), bioren.load(files.model)
        np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_bioren"])
        np.testing.assert_array_equal(model.correct(adata), adata.layers["bioren"])
        assert model.population_.target_sum == 1e4
        assert list(model.mapper_.labels) == ["type"]

    def test_what_is_published_is_published(self, files: Files) -> None:
        model = bioren.load(files.published)
        assert model.population_.published == {"a": 50, "b": 50, "c": 50}
        assert list(model.mapper_.labels) == ["type"]
        with pytest.raises(RuntimeError, match="published without its samples"):
            model.embed(anndata.read_h5ad(files.integrated))

    def test_others_may_read_the_files(self, files: Files) -> None:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (files.model, files.published)}
        assert modes == {stat.S_IMODE(files.reference.stat().st_mode)}

    def test_each_alone(self, files: Files, tmp_path: Path) -> None:
        for option, original in (("--save-model", files.model), ("--publish", files.published)):
            options = (option, tmp_path / option, "--learn", "type", "-q")
            result = integrate(files.reference, tmp_path / f"{option}.h5ad", *options)
            assert (result.exit_code, result.output) == (0, "")
            assert_maps_as(tmp_path / option, original)
        names = ["--publish", "--publish.h5ad", "--save-model", "--save-model.h5ad"]
        assert entries(tmp_path) == names

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("option", ["--save-model", "--publish"])
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (["--learn", "tpye"], "no column 'tpye'; did you mean 'type'"),
            (["--labels", "tpye"], "no column 'tpye'"),
            (["--covariate", "type"], "type"),
            (["--reference", "nobody"], "nobody"),
        ],
        ids=["learn", "labels", "covariate", "reference"],
    )
    def test_a_wrong_column_leaves_all_as_it_was(
        self,
        files: Files,
        tmp_path: Path,
        wrong: list[str],
        words: str,
        option: str,
        overwrite: bool,
    ) -> None:
        target, model = tmp_path / "out.h5ad", tmp_path / "model"
        options = [option, model, *wrong]
        if overwrite:
            target.write_text("precious")
            model.write_text("precious")
            options.append("--overwrite")
        assert words in one_message(integrate(files.reference, target, *options))
        assert entries(tmp_path) == (["model", "out.h5ad"] if overwrite else [])
        assert {path.read_text() for path in tmp_path.iterdir()} <= {"precious"}

    @pytest.mark.parametrize("failing", ["save", "publish"])
    def test_a_full_disk_leaves_all_as_it_was(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        def half_written(model: object, path: Path, **options: object) -> None:
            Path(path).write_text("half")
            raise OSError("No space left on device")

        original = getattr(model_file, failing)

        def only_at_the_end(model: object, path: Path, **options: object) -> None:
            # The model is first put into a folder of its own.
            inside = Path(path).parent == tmp_path
            (half_written if inside else original)(model, path, **options)

        monkeypatch.setattr(model_file, failing, only_at_the_end)
        names = ("out.h5ad", "model", "published")
        for name in names:
            (tmp_path / name).write_text("precious")
        options = ("--save-model", tmp_path / "model", "--publish", tmp_path / "published")
        result = integrate(files.reference, tmp_path / "out.h5ad", *options, "--overwrite")
        assert "No space left" in one_message(result)
        assert entries(tmp_path) == sorted(names)
        assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}

    @pytest.mark.parametrize("existing", ["out.h5ad", "model", "published"])
    def test_existing_files_are_refused_at_once(
        self, files: Files, tmp_path: Path, existing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "bioren.cli.commands.read_file", lambda *_: pytest.fail("work was begun")
        )
        (tmp_path / existing).write_text("precious")
        options = ("--save-model", tmp_path / "model", "--publish", tmp_path / "published")
        message = one_message(integrate(files.reference, tmp_path / "out.h5ad", *options))
        assert f"{tmp_path / existing} exists already; --overwrite replaces it" in message
        assert entries(tmp_path) == [existing]
        assert (tmp_path / existing).read_text() == "precious"

    def test_overwrite_replaces_all(self, files: Files, tmp_path: Path) -> None:
        for name in ("out.h5ad", "model", "published"):
            (tmp_path / name).write_text("old")
        options = ("--save-model", tmp_path / "model", "--publish", tmp_path / "published")
        options += ("--learn", "type", "--overwrite", "-q")
        assert integrate(files.reference, tmp_path / "out.h5ad", *options).output == ""
        assert_maps_as(tmp_path / "model", files.model)
        assert_maps_as(tmp_path / "published", files.published)
        assert "X_bioren" in anndata.read_h5ad(tmp_path / "out.h5ad").obsm

    @pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
    @pytest.mark.parametrize(
        ("target", "model", "published"),
        [("o", "o", "p"), ("o", "m", "o"), ("o", "m", "m"), ("o", "m", "./m")],
    )
    def test_one_file_for_two_things(
        self,
        files: Files,
        tmp_path: Path,
        target: str,
        model: str,
        published: str,
        overwrite: list[str],
    ) -> None:
        folder = str(tmp_path)
        options = ("--save-model", f"{folder}/{model}", "--publish", f"{folder}/{published}")
        result = integrate(files.reference, tmp_path / target, *options, *overwrite)
        assert "name a file for each" in one_message(result)
        assert entries(tmp_path) == []

    def test_a_model_that_would_replace_the_input(self, tmp_path: Path) -> None:
        source = tmp_path / "in.h5ad"
        counts(90, "abc", seed=1).write_h5ad(source)
        before = source.read_bytes()
        result = integrate(source, tmp_path / "out.h5ad", "--save-model", source)
        assert "is the input itself" in one_message(result)
        assert source.read_bytes() == before
        assert entries(tmp_path) == ["in.h5ad"]

    def test_folders(self, files: Files, tmp_path: Path) -> None:
        for option in ("--save-model", "--publish"):
            for path in (tmp_path, tmp_path / "no" / "model"):
                result = integrate(files.reference, tmp_path / "o.h5ad", option, path)
                assert "folder" in one_message(result)
                assert entries(tmp_path) == []

    def test_labels_without_a_model_exit_2(self, files: Files, tmp_path: Path) -> None:
        result = integrate(files.reference, tmp_path / "out.h5ad", "--learn", "type")
        assert result.exit_code == 2
        assert "--learn" in result.stderr
        assert entries(tmp_path) == []

    def test_too_few_cells_to_publish(self, tmp_path: Path) -> None:
        counts(18, "abc", seed=1).write_h5ad(tmp_path / "in.h5ad")
        options = ("--publish", tmp_path / "model")
        message = one_message(integrate(tmp_path / "in.h5ad", tmp_path / "out.h5ad", *options))
        assert "nothing can be published" in message
        assert entries(tmp_path) == ["in.h5ad"]

    def test_a_model_serves_as_reference(self, files: Files, tmp_path: Path) -> None:
        for model in (files.model, files.published):
            options = ("--reference", model, "--overwrite", "-q")
            result = integrate(files.query, tmp_path / "out.h5ad", *options)
            assert (result.exit_code, result.output) == (0, "")


class TestMap:
    def test_succeeds_and_says_what_it_does(self, mapped: tuple[Result, Path]) -> None:
        result, target = mapped
        assert result.exit_code == 0, result.output
        for words in (
            "60 cells x 40 genes",
            "3 samples",
            "brought to 10,000 per cell",
            "40 of its genes are among the reference's 40",
        ):
            assert words in result.stdout
        for sample in "xy":
            assert re.search(rf"^{sample}: mapping score (0\.\d\d|1\.00)$", result.stdout, re.M)
        assert result.stdout.splitlines()[-1] == f"{target} written"
        assert result.stderr == ""

    def test_is_what_the_function_gives(self, files: Files, mapped: tuple[Result, Path]) -> None:
        written, adata = anndata.read_h5ad(mapped[1]), logged(counts(60, "xy", seed=2, depth=0.5))
        bioren.tl.map_query(adata, files.model, batch_key="sample")
        np.testing.assert_allclose(written.obsm["X_bioren"], adata.obsm["X_bioren"], atol=1e-3)
        np.testing.assert_allclose(written.layers["bioren"], adata.layers["bioren"], atol=1e-3)
        for name in ("bioren_mapping_score", "bioren_type_probability"):
            np.testing.assert_allclose(written.obs[name], adata.obs[name], atol=1e-3)
        assert (written.obs["bioren_type"] == adata.obs["bioren_type"]).mean() > 0.98
        effects = bioren.tl.batch_effects(written)
        assert set(effects["sample"]) == {"x", "y"}
        assert len(effects) == 2 * N_GENES

    def test_labels_are_carried_over(self, mapped: tuple[Result, Path]) -> None:
        obs = anndata.read_h5ad(mapped[1]).obs
        assert (obs["bioren_type"].astype(str) == obs["type"].astype(str)).mean() > 0.9

    def test_everything_else_is_as_it_was(self, files: Files, mapped: tuple[Result, Path]) -> None:
        written, given = anndata.read_h5ad(mapped[1]), anndata.read_h5ad(files.query)
        np.testing.assert_array_equal(written.layers["counts"].toarray(), given.X.toarray())
        pd.testing.assert_frame_equal(written.obs[list(given.obs)], given.obs)
        pd.testing.assert_frame_equal(written.var[list(given.var)], given.var)
        assert sorted(written.layers) == ["bioren", "counts"]

    def test_same_model_same_content(
        self, files: Files, mapped: tuple[Result, Path], tmp_path: Path
    ) -> None:
        again = tmp_path / "again.h5ad"
        result = map_onto(files.model, files.query, again, "-b", "sample", "-q")
        assert (result.exit_code, result.output) == (0, "")
        first, second = anndata.read_h5ad(mapped[1]), anndata.read_h5ad(again)
        np.testing.assert_array_equal(first.obsm["X_bioren"], second.obsm["X_bioren"])
        np.testing.assert_array_equal(first.layers["bioren"], second.layers["bioren"])

    def test_a_published_model_maps_alike(
        self, files: Files, mapped: tuple[Result, Path], tmp_path: Path
    ) -> None:
        target = tmp_path / "out.h5ad"
        assert map_onto(files.published, files.query, target, "-b", "sample", "-q").output == ""
        ours, theirs = (anndata.read_h5ad(path).obsm["X_bioren"] for path in (mapped[1], target))
        np.testing.assert_allclose(theirs, ours, atol=0.05 * ours.std())

    @pytest.mark.parametrize("total", [2_000, 50_000])
    @pytest.mark.filterwarnings("ignore:.*fit the reference badly")  # two samples as one
    def test_counts_are_normalized_to_the_references_sum(
        self, files: Files, tmp_path: Path, total: int
    ) -> None:
        reference, target = tmp_path / "reference.h5ad", tmp_path / "out.h5ad"
        logged(counts(150, "abc", seed=1), total).write_h5ad(reference)
        model = tmp_path / "model"
        result = integrate(reference, tmp_path / "done.h5ad", "--save-model", model, "-q")
        assert result.output == ""
        assert bioren.load(model).population_.target_sum == total
        result = map_onto(model, files.query, target)
        assert result.exit_code == 0, result.output
        assert f"brought to {total:,} per cell" in result.stdout
        sums = np.expm1(anndata.read_h5ad(target).X.toarray().astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(sums, total, rtol=1e-4)

    def test_log_expression_of_another_sum_is_warned_of(self, files: Files, tmp_path: Path) -> None:
        logged(counts(60, "xy", seed=2), 1e6).write_h5ad(tmp_path / "in.h5ad")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            result = map_onto(files.model, tmp_path / "in.h5ad", tmp_path / "out.h5ad")
        assert result.exit_code == 0, result.output
        assert "was normalized to 1,000,000 molecules" in result.stderr
        assert "counts" not in anndata.read_h5ad(tmp_path / "out.h5ad").layers

    def test_a_layer(self, files: Files, mapped: tuple[Result, Path], tmp_path: Path) -> None:
        adata = counts(60, "xy", seed=2, depth=0.5)
        adata.layers["log"] = logged(adata).X
        adata.write_h5ad(tmp_path / "in.h5ad")
        target = tmp_path / "out.h5ad"
        options = ("--layer", "log", "-b", "sample", "-q")
        assert map_onto(files.model, tmp_path / "in.h5ad", target, *options).output == ""
        written = anndata.read_h5ad(target)
        np.testing.assert_array_equal(written.X.toarray(), adata.X.toarray())
        expected = anndata.read_h5ad(mapped[1]).obsm["X_bioren"]
        np.testing.assert_allclose(written.obsm["X_bioren"], expected, atol=1e-3)

    def test_without_a_batch_key_all_cells_are_one_sample(
        self, files: Files, tmp_path: Path
    ) -> None:
        target = tmp_path / "out.h5ad"
        assert map_onto(files.model, files.query, target, "-q").output == ""
        assert len(anndata.read_h5ad(target).uns["bioren"]["samples"]) == 1
        options = ("-b", "sample", "-b", "type", "-q", "--overwrite")
        assert map_onto(files.model, files.query, target, *options).output == ""
        assert len(anndata.read_h5ad(target).uns["bioren"]["samples"]) == 4

    def test_genes_by_another_name(
        self, files: Files, mapped: tuple[Result, Path], tmp_path: Path
    ) -> None:
        adata = counts(60, "xy", seed=2, depth=0.5)
        adata.var["symbol"] = adata.var_names
        adata.var_names = adata.var["identifier"].to_list()
        adata.write_h5ad(tmp_path / "in.h5ad")
        target = tmp_path / "out.h5ad"
        message = one_message(map_onto(files.model, tmp_path / "in.h5ad", target))
        assert "0 of the 40 genes" in message
        assert "as the reference does: --genes-key symbol" in message
        assert entries(tmp_path) == ["in.h5ad"]
        options = ("--genes-key", "symbol", "-b", "sample", "-q")
        assert map_onto(files.model, tmp_path / "in.h5ad", target, *options).output == ""
        first, second = anndata.read_h5ad(mapped[1]), anndata.read_h5ad(target)
        np.testing.assert_array_equal(first.obsm["X_bioren"], second.obsm["X_bioren"])

    def test_covariates_are_asked_for(self, files: Files, tmp_path: Path) -> None:
        model, target = tmp_path / "model", tmp_path / "out.h5ad"
        options = ("--covariate", "numbers", "--save-model", model, "-q")
        assert integrate(files.reference, tmp_path / "done.h5ad", *options).output == ""
        assert map_onto(model, files.query, target, "-q").output == ""
        adata = anndata.read_h5ad(files.query)
        del adata.obs["numbers"]
        adata.write_h5ad(tmp_path / "in.h5ad")
        result = map_onto(model, tmp_path / "in.h5ad", target, "--overwrite")
        assert "no column 'numbers'" in one_message(result)


class TestMapOutput:
    def test_existing_file(self, files: Files, tmp_path: Path) -> None:
        target = tmp_path / "out.h5ad"
        target.write_text("precious")
        message = one_message(map_onto(files.model, files.query, target))
        assert "exists already; --overwrite replaces it" in message
        assert target.read_text() == "precious"
        assert map_onto(files.model, files.query, target, "--overwrite", "-q").output == ""
        assert "X_bioren" in anndata.read_h5ad(target).obsm
        assert entries(tmp_path) == ["out.h5ad"]

    def test_output_that_is_the_input(self, files: Files, tmp_path: Path) -> None:
        path = tmp_path / "in.h5ad"
        path.write_bytes(files.query.read_bytes())
        assert "is the input itself" in one_message(map_onto(files.model, path, path))
        assert path.read_bytes() == files.query.read_bytes()
        assert map_onto(files.model, path, path, "--overwrite", "-q").output == ""
        given = anndata.read_h5ad(files.query).X
        assert (anndata.read_h5ad(path).layers["counts"] != given).nnz == 0

    def test_output_that_is_the_model(self, files: Files, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.write_bytes(files.model.read_bytes())
        one_message(map_onto(model, files.query, model))
        assert model.read_bytes() == files.model.read_bytes()
        assert entries(tmp_path) == ["model"]

    @pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
    def test_failure_in_the_middle_leaves_all_as_it_was(
        self,
        files: Files,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        overwrite: list[str],
    ) -> None:
        def half_written(self: anndata.AnnData, path: Path, **options: object) -> None:
            Path(path).write_text("half")
            raise OSError("No space left on device")

        monkeypatch.setattr(anndata.AnnData, "write_h5ad", half_written)
        target = tmp_path / "out.h5ad"
        if overwrite:
            target.write_text("precious")
        result = map_onto(files.model, files.query, target, *overwrite)
        assert "No space left" in one_message(result)
        assert entries(tmp_path) == (["out.h5ad"] if overwrite else [])
        assert not overwrite or target.read_text() == "precious"

    def test_folders(self, files: Files, tmp_path: Path) -> None:
        for target in (tmp_path, tmp_path / "no" / "out.h5ad"):
            assert "folder" in one_message(map_onto(files.model, files.query, target))
        assert entries(tmp_path) == []


def text(path: Path) -> None:
    path.write_text("this is no model")


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


def h5ad(path: Path) -> None:
    counts(20, "ab", seed=0).write_h5ad(path)


def forged(path: Path) -> None:
    forge(path, "model", {"genes": "all"}, {})


def newer(path: Path) -> None:
    forge(path, "model", {}, {}, format=99)


class TestBadModel:
    @pytest.mark.parametrize("make", [text, folder, nothing, h5ad, forged, newer])
    def test_is_refused_before_the_query_is_read(
        self, files: Files, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        model = tmp_path / "bad"
        make(model)
        before = entries(tmp_path)
        message = one_message(map_onto(model, tmp_path / "no.h5ad", tmp_path / "out.h5ad"))
        assert str(model) in message
        assert len(message.splitlines()) == 1
        assert entries(tmp_path) == before

    def test_damage(self, files: Files, tmp_path: Path) -> None:
        content, model = files.model.read_bytes(), tmp_path / "bad"
        for part in (b"", content[:9], content[: len(content) // 2], content[:-1]):
            model.write_bytes(part)
            message = one_message(map_onto(model, files.query, tmp_path / "out.h5ad"))
            assert f"{model} cannot be read as a file of bioren" in message
        model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        message = one_message(map_onto(model, files.query, tmp_path / "out.h5ad"))
        assert f"{model} was changed after it was written" in message
        assert entries(tmp_path) == ["bad"]

    def test_a_population_is_no_model(self, files: Files, tmp_path: Path) -> None:
        bioren.load(files.model).population_.save(tmp_path / "population")
        message = one_message(map_onto(tmp_path / "population", files.query, tmp_path / "out"))
        assert "holds a population, expected a model" in message


class TestBadQuery:
    def test_missing_file(self, files: Files, tmp_path: Path) -> None:
        message = one_message(map_onto(files.model, tmp_path / "no.h5ad", tmp_path / "o.h5ad"))
        assert "no.h5ad: there is no such file" in message

    def test_unknown_columns(self, files: Files, tmp_path: Path) -> None:
        for options, words in (
            (("-b", "smaple"), "no column 'smaple'; did you mean 'sample'"),
            (("--layer", "log"), "no layer 'log'"),
            (("--genes-key", "symbol"), "no column 'symbol'"),
        ):
            message = one_message(map_onto(files.model, files.query, tmp_path / "o", *options))
            assert words in message
        assert entries(tmp_path) == []

    def test_no_genes_in_common(self, files: Files, tmp_path: Path) -> None:
        adata = counts(60, "xy", seed=2)
        adata.var_names = [f"other{i}" for i in range(N_GENES)]
        del adata.var["identifier"]
        adata.write_h5ad(tmp_path / "in.h5ad")
        message = one_message(map_onto(files.model, tmp_path / "in.h5ad", tmp_path / "o.h5ad"))
        assert "The query has 0 of the 40 genes" in message
        assert "is this the right reference?" in message
        assert entries(tmp_path) == ["in.h5ad"]

    def test_few_genes_in_common(self, files: Files, tmp_path: Path) -> None:
        counts(60, "xy", seed=2)[:, :12].copy().write_h5ad(tmp_path / "in.h5ad")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            result = map_onto(files.model, tmp_path / "in.h5ad", tmp_path / "o.h5ad")
        assert result.exit_code == 0, result.output
        warning = [line for line in result.stderr.splitlines() if "only 12 of the 40" in line]
        assert len(warning) == 1
        assert warning[0].startswith("Warning: ")

    def test_values_that_are_missing(self, files: Files, tmp_path: Path) -> None:
        adata = logged(counts(60, "xy", seed=2))
        adata.X[3, 2] = np.nan
        adata.write_h5ad(tmp_path / "in.h5ad")
        message = one_message(map_onto(files.model, tmp_path / "in.h5ad", tmp_path / "o.h5ad"))
        assert "1 values (0.0%) are missing (NaN), of 1 of" in message


class TestHelp:
    @pytest.mark.parametrize("command", ["map", "integrate"])
    def test_fits_80_columns(self, command: str) -> None:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_says_what_is_read_and_written(self) -> None:
        assert "\n  map " in run("--help").stdout
        help_text = " ".join(run("map", "--help").stdout.split())
        for word in (
            "QUERY.h5ad",
            "OUT.h5ad",
            'obsm["X_bioren"]',
            'layers["bioren"]',
            'obs["bioren_mapping_score"]',
            "exit code",
            "Example: bioren map",
        ):
            assert word in help_text
        of_integrate = run("integrate", "--help").stdout
        for option, where in (
            ("--reference", help_text),
            ("--batch-key", help_text),
            ("--genes-key", help_text),
            ("--layer", help_text),
            ("--overwrite", help_text),
            ("--quiet", help_text),
            ("--save-model", of_integrate),
            ("--publish", of_integrate),
            ("--learn", of_integrate),
        ):
            assert len(where.split(option, 1)[1].split(" -", 1)[0].split()) > 2, option

    def test_the_reference_is_required(self, files: Files, tmp_path: Path) -> None:
        result = run("map", files.query, tmp_path / "out.h5ad")
        assert result.exit_code == 2
        assert "--reference" in result.stderr


def test_what_was_mapped_can_be_reported(files, tmp_path):
    assert map_onto(files.model, files.query, tmp_path / "mapped.h5ad").exit_code == 0
    result = run("effects", tmp_path / "mapped.h5ad", "--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "query" in (tmp_path / "page.html").read_text()


def test_the_reference_is_not_overwritten(files, tmp_path):
    model = tmp_path / "model.bioren"
    model.write_bytes(files.model.read_bytes())
    result = map_onto(model, files.query, model, "--overwrite")
    assert result.exit_code == 1
    assert "is the reference itself" in result.output
    assert model.read_bytes() == files.model.read_bytes()


def test_labels_that_are_not_there_are_missed_before_the_work(files, tmp_path, monkeypatch):
    monkeypatch.setattr("bioren.tools.RenormAutoencoder", lambda *_, **__: pytest.fail("fitted"))
    target = tmp_path / "out.h5ad"
    result = integrate(
        files.reference, target, "--save-model", tmp_path / "model", "--learn", "nope"
    )
    assert result.exit_code == 1
    assert "nope" in result.output
    assert not list(tmp_path.iterdir())


def test_a_single_sample_can_be_published(tmp_path):
    counts(80, "a", seed=4).write_h5ad(tmp_path / "one.h5ad")
    source, target = tmp_path / "one.h5ad", tmp_path / "out.h5ad"
    assert integrate(source, target).exit_code == 1
    result = integrate(source, target, "--publish", tmp_path / "one.bioren")
    assert result.exit_code == 0, result.output
    assert bioren.load(tmp_path / "one.bioren").population_.cells.to_dict() == {"a": 80}


@pytest.fixture(scope="module")
def strange(files, tmp_path_factory):
    """Cells of other types than the reference has, mapped onto it, and their page."""
    folder = tmp_path_factory.mktemp("strange")
    adata = counts(80, "xy", seed=2)
    known = (adata.obs["sample"] == "x").to_numpy()
    x = adata.X.toarray()
    x[~known] = x[~known][:, np.random.default_rng(5).permutation(N_GENES)]
    adata.X = sparse.csr_matrix(x)
    adata.write_h5ad(folder / "in.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = map_onto(files.model, folder / "in.h5ad", folder / "out.h5ad", "-b", "sample")
    assert result.exit_code == 0, result.output
    page = folder / "page.html"
    reported = run("effects", folder / "out.h5ad", "--report", page)
    assert reported.exit_code == 0, reported.output
    return result, " ".join(html.unescape(page.read_text()).split()), folder / "out.h5ad"


def test_a_reference_that_does_not_fit_is_warned_of(strange):
    result, page, path = strange
    score = anndata.read_h5ad(path).obs.groupby("sample", observed=True)["bioren_mapping_score"]
    x, y = score.mean()
    assert y < 0.5 < x
    for text in (" ".join(result.stderr.split()), page):
        assert (
            f"1 of 2 samples fit the reference badly, by their mean mapping score: y ({y:.2f})"
            in (text)
        )
        assert "x (" not in text.split("mean mapping score:")[1].split(".")[0]
        assert "Usual for the reference's own kind of cells is above .7" in text
        assert "--batch-key KEY" in text
    assert "nothing suspicious" not in page


def test_the_report_of_a_mapped_file_tells_of_the_mapping(strange):
    _, page, path = strange
    adata = anndata.read_h5ad(path)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    share = 100 * (adata.obs["bioren_mapping_score"][adata.obs["sample"] == "y"] < 0.5).mean()
    mean = adata.uns["bioren"]["mapping_score"][1]
    label = adata.obs["bioren_type"].value_counts()
    for words in (
        "Mapped onto the reference in model.bioren",
        "40 of the reference's 40 genes, 40 of the 40 that tell",
        f"y 40 {mean:.2f} {share:.0f}",
        "Transferred labels: type",
        f"{label.index[0]} {label.iloc[0]}",
        "How well does the reference know the cells?",
        "Not checked:",
        "not done for mapped samples",
        "The reference is the population in model.bioren",
    ):
        assert words in text, words


def test_a_record_of_an_earlier_version_has_the_scores(strange, tmp_path):
    adata = anndata.read_h5ad(strange[2])
    del adata.uns["bioren"]["mapping"]
    adata.uns["bioren"]["mapping_score"][:] = np.nan
    del adata.obs["bioren_mapping_score"]
    adata.write_h5ad(tmp_path / "old.h5ad")
    result = run("effects", tmp_path / "old.h5ad", "--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "how well the reference knows 2 of 2 samples" in page
    assert "not known" in page
    assert "nothing suspicious" not in page


def test_scores_are_drawn(strange):
    from matplotlib.figure import Figure

    ax = bioren.pl.mapping_scores(anndata.read_h5ad(strange[2]), ax=Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["y (40)", "x (40)"]
    assert len(ax.patches) == 2 * 20
    adata = anndata.read_h5ad(strange[2])
    del adata.obs["bioren_mapping_score"]
    with pytest.raises(KeyError, match="no column 'bioren_mapping_score'"):
        bioren.pl.mapping_scores(adata)
