"""The command line, as a user meets it: exit codes, messages, files whole or absent."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.main import get_command
from typer.testing import CliRunner, Result

import bioren
from bioren.cli.commands import app
from bioren.cli.messages import OPTIONS, in_own_words

N_CELLS, N_GENES = 120, 40


def run(*arguments: object) -> Result:
    """Call the command in this process, on a terminal of 80 columns."""
    return CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(
        app, [str(argument) for argument in arguments]
    )


def integrate(source: Path, target: Path, *options: object) -> Result:
    return run("integrate", source, target, "--batch-key", "sample", "--latent", 4, *options)


def counts() -> anndata.AnnData:
    """Three samples of Poisson counts, two cell types, a gene-wise factor per sample."""
    rng = np.random.default_rng(0)
    sample = np.arange(N_CELLS) % 3
    profiles = rng.gamma(1, 5, size=(2, N_GENES))
    factor = rng.lognormal(0, 0.5, size=(3, N_GENES))
    x = rng.poisson(profiles[rng.integers(2, size=N_CELLS)] * factor[sample])
    obs = pd.DataFrame(
        {"sample": pd.Categorical([f"s{s}" for s in sample]), "run": sample, "one": "same"},
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=var)


def logged() -> anndata.AnnData:
    adata = counts()
    adata.X = adata.X.log1p()
    return adata


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw.h5ad"
    counts().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def done(raw: Path) -> tuple[Result, Path]:
    """What one integration of the counts said and wrote."""
    target = raw.with_name("integrated.h5ad")
    return integrate(raw, target, "--genes", 30), target


def only(folder: Path, *names: str) -> bool:
    """Say whether the folder holds these entries and nothing else, hidden files included."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def one_message(result: Result) -> str:
    """Return the error of a failed call: one message that ends stderr, no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    progress, _, message = result.stderr.rpartition("Error: ")
    assert message
    assert not progress or progress.startswith("\rtraining")
    return message


class TestHelp:
    def test_without_arguments_shows_help(self) -> None:
        result = run()
        assert result.exit_code == 2
        assert "bioren demo" in result.output

    @pytest.mark.parametrize("command", [[], ["demo"], ["integrate"], ["effects"]])
    def test_fits_80_columns(self, command: list[str]) -> None:
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_names_each_command(self) -> None:
        for command in ("demo", "integrate", "effects"):
            assert f"\n  {command} " in run("--help").stdout

    def test_says_what_is_read_and_written(self) -> None:
        text = " ".join(run("integrate", "--help").stdout.split())
        for word in (
            "IN.h5ad",
            "OUT.h5ad",
            'layers["counts"]',
            'obsm["X_bioren"]',
            'layers["bioren"]',
            'uns["bioren"]',
            "exit code",
            "Example: bioren integrate",
        ):
            assert word in text
        for option in (
            "--batch-key",
            "--reference",
            "--layer",
            "--genes",
            "--latent",
            "--strength",
            "--seed",
            "--overwrite",
            "--quiet",
        ):
            # An option is followed by its value's name and by what it does.
            assert len(text.split(option, 1)[1].split(" -", 1)[0].split()) > 2, option

    def test_version(self) -> None:
        result = run("--version")
        assert (result.exit_code, result.stdout) == (0, f"bioren {bioren.__version__}\n")


class TestResult:
    def test_succeeds_and_says_what_it_does(self, done: tuple[Result, Path]) -> None:
        result, target = done
        assert result.exit_code == 0, result.output
        for words in ("120 cells x 40 genes", "3 samples", "X holds counts", "30 variable genes"):
            assert words in result.stdout
        assert str(target) in result.stdout.splitlines()[-1]

    def test_file_reads_back(self, done: tuple[Result, Path]) -> None:
        adata = anndata.read_h5ad(done[1])
        assert adata.obsm["X_bioren"].shape == (N_CELLS, 4)
        assert adata.layers["bioren"].shape == (N_CELLS, N_GENES)
        assert np.isfinite(adata.layers["bioren"]).all()
        effects = bioren.tl.batch_effects(adata)
        assert len(effects) == 3 * N_GENES
        assert set(effects["sample"]) == {"s0", "s1", "s2"}

    def test_counts_are_kept_and_normalized(self, done: tuple[Result, Path]) -> None:
        adata, given = anndata.read_h5ad(done[1]), counts()
        x = given.X.toarray()
        np.testing.assert_array_equal(adata.layers["counts"].toarray(), x)
        expected = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
        np.testing.assert_allclose(adata.X.toarray(), expected, rtol=1e-5)

    def test_everything_else_is_as_it_was(self, done: tuple[Result, Path]) -> None:
        adata, given = anndata.read_h5ad(done[1]), counts()
        assert adata.obs_names.equals(given.obs_names)
        assert adata.var_names.equals(given.var_names)
        assert list(adata.obs) == list(given.obs)
        np.testing.assert_array_equal(adata.obs["run"], given.obs["run"])

    def test_genes_are_chosen_by_batch(self, done: tuple[Result, Path]) -> None:
        adata = anndata.read_h5ad(done[1])
        assert int(adata.var["highly_variable"].sum()) == 30

    def test_samples_come_closer(self, done: tuple[Result, Path]) -> None:
        adata = anndata.read_h5ad(done[1])

        def distance(x: np.ndarray) -> float:
            means = [x[(adata.obs["sample"] == s).to_numpy()].mean(axis=0) for s in ("s0", "s1")]
            return float(np.linalg.norm(means[0] - means[1]))

        assert distance(adata.layers["bioren"]) < 0.3 * distance(adata.X.toarray())

    def test_same_seed_same_content(self, raw: Path, done: tuple[Result, Path]) -> None:
        again = raw.with_name("again.h5ad")
        assert integrate(raw, again, "--genes", 30, "--quiet").exit_code == 0
        first, second = (anndata.read_h5ad(path) for path in (done[1], again))
        np.testing.assert_array_equal(first.obsm["X_bioren"], second.obsm["X_bioren"])
        np.testing.assert_array_equal(first.layers["bioren"], second.layers["bioren"])
        np.testing.assert_array_equal(first.uns["bioren"]["d"], second.uns["bioren"]["d"])

    def test_log_expression_is_left_alone(self, tmp_path: Path) -> None:
        logged().write_h5ad(tmp_path / "log.h5ad")
        result = integrate(tmp_path / "log.h5ad", tmp_path / "out.h5ad")
        assert result.exit_code == 0, result.output
        assert "counts" not in result.stdout
        adata = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert list(adata.layers) == ["bioren"]
        assert (adata.X != logged().X).nnz == 0

    def test_layer(self, tmp_path: Path) -> None:
        adata = counts()
        adata.layers["log"] = logged().X
        adata.write_h5ad(tmp_path / "in.h5ad")
        target = tmp_path / "out.h5ad"
        result = integrate(tmp_path / "in.h5ad", target, "--layer", "log", "--genes", 20)
        assert result.exit_code == 0, result.output
        written = anndata.read_h5ad(target)
        assert (written.X != adata.X).nnz == 0
        assert sorted(written.layers) == ["bioren", "log"]
        assert int(written.var["highly_variable"].sum()) == 20

    def test_genes_that_are_marked_already_are_used(self, tmp_path: Path) -> None:
        adata = logged()
        adata.var["highly_variable"] = np.arange(N_GENES) < 17
        adata.write_h5ad(tmp_path / "in.h5ad")
        result = integrate(tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--genes", 30)
        assert result.exit_code == 0, result.output
        assert "17 variable genes, as var['highly_variable'] marks them" in result.stdout
        marked = anndata.read_h5ad(tmp_path / "out.h5ad").var["highly_variable"]
        np.testing.assert_array_equal(marked, adata.var["highly_variable"])

    def test_reference_samples_and_strength(self, raw: Path, tmp_path: Path) -> None:
        options = ("--reference", "s0", "--reference", "s1", "--strength", 0, "--quiet")
        assert integrate(raw, tmp_path / "out.h5ad", *options).exit_code == 0
        adata = anndata.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_allclose(adata.layers["bioren"], adata.X.toarray(), atol=1e-5)

    def test_integer_labels_name_samples(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "out.h5ad"
        result = run("integrate", raw, target, "-b", "run", "--latent", 2, "-q")
        assert result.exit_code == 0, result.output
        assert list(anndata.read_h5ad(target).uns["bioren"]["samples"]) == ["0", "1", "2"]

    def test_quiet_prints_nothing(self, raw: Path, tmp_path: Path) -> None:
        result = integrate(raw, tmp_path / "out.h5ad", "--quiet")
        assert (result.exit_code, result.output) == (0, "")

    def test_no_progress_is_told_of_a_training_that_does_not_take_place(
        self, done: tuple[Result, Path]
    ) -> None:
        assert "training" not in done[0].output
        assert "epoch" not in done[0].output


class TestOutput:
    def test_existing_file_is_refused(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "out.h5ad"
        target.write_text("precious")
        message = one_message(integrate(raw, target))
        assert "exists already" in message
        assert "--overwrite" in message
        assert target.read_text() == "precious"

    def test_overwrite_replaces_it(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "out.h5ad"
        target.write_text("old")
        assert integrate(raw, target, "--overwrite", "-q").exit_code == 0
        assert "X_bioren" in anndata.read_h5ad(target).obsm
        assert only(tmp_path, "out.h5ad")

    @pytest.mark.parametrize("options", [[], ["--overwrite"]])
    def test_failure_in_the_middle_leaves_all_as_it_was(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        def half_written(self: anndata.AnnData, path: Path, **options: object) -> None:
            Path(path).write_text("half")
            raise OSError("No space left on device")

        monkeypatch.setattr(anndata.AnnData, "write_h5ad", half_written)
        target = tmp_path / "out.h5ad"
        if options:
            target.write_text("precious")
        assert "No space left" in one_message(integrate(raw, target, *options))
        assert only(tmp_path, *(["out.h5ad"] if options else []))
        assert not options or target.read_text() == "precious"

    def test_interrupt_leaves_nothing(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("bioren.tools.integrate", interrupt)
        assert integrate(raw, tmp_path / "out.h5ad").exit_code != 0
        assert only(tmp_path)

    def test_missing_folder(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(integrate(raw, tmp_path / "no" / "out.h5ad"))
        assert str(tmp_path / "no") in message
        assert only(tmp_path)

    def test_folder_that_cannot_be_written(self, raw: Path) -> None:
        if not Path("/proc/self").is_dir():
            pytest.skip("needs /proc, a folder in which nobody can make files")
        message = one_message(integrate(raw, Path("/proc/out.h5ad")))
        assert "/proc cannot be written" in message

    def test_folder_instead_of_a_file(self, raw: Path, tmp_path: Path) -> None:
        for options in ([], ["--overwrite"]):
            assert "is a folder" in one_message(integrate(raw, tmp_path, *options))

    def test_output_that_is_the_input(self, tmp_path: Path) -> None:
        path = tmp_path / "data.h5ad"
        counts().write_h5ad(path)
        before = path.read_bytes()
        assert "is the input itself" in one_message(integrate(path, path))
        assert path.read_bytes() == before
        # Asked for, nothing is lost: the counts move to their layer.
        assert integrate(path, path, "--overwrite", "-q").exit_code == 0
        adata = anndata.read_h5ad(path)
        assert (adata.layers["counts"] != counts().X).nnz == 0
        # And once more: now the file holds log-expression.
        assert integrate(path, path, "--overwrite", "-q").exit_code == 0
        assert (anndata.read_h5ad(path).X != adata.X).nnz == 0


class TestBadInput:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path: Path) -> object:
        yield
        assert not [path for path in tmp_path.iterdir() if path.name != "in.h5ad"]

    def test_missing_file(self, tmp_path: Path) -> None:
        message = one_message(integrate(tmp_path / "no.h5ad", tmp_path / "out.h5ad"))
        assert "no.h5ad: there is no such file" in message

    def test_folder(self, tmp_path: Path) -> None:
        assert "this is a folder" in one_message(integrate(tmp_path, tmp_path / "out.h5ad"))

    def test_truncated_file(self, raw: Path, tmp_path: Path) -> None:
        path = tmp_path / "in.h5ad"
        path.write_bytes(raw.read_bytes()[:5000])
        assert "cannot be read as .h5ad" in one_message(integrate(path, tmp_path / "out.h5ad"))

    def test_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "in.h5ad"
        path.write_text("gene,cell\n1,2\n")
        assert "cannot be read as .h5ad" in one_message(integrate(path, tmp_path / "out.h5ad"))

    def test_other_hdf5(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "in.h5ad", "w") as file:
            file["matrix"] = np.ones((3, 2))
        message = one_message(integrate(tmp_path / "in.h5ad", tmp_path / "out.h5ad"))
        assert "cannot be read as .h5ad" in message

    def test_unknown_batch_key(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(run("integrate", raw, tmp_path / "out.h5ad", "-b", "smaple"))
        assert "no column 'smaple'; did you mean 'sample'? obs holds: sample, run, one" in message

    def test_one_sample_only(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(run("integrate", raw, tmp_path / "out.h5ad", "-b", "one"))
        assert "one sample only, 'same'" in message

    def test_unknown_reference(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(integrate(raw, tmp_path / "out.h5ad", "--reference", "s9"))
        assert "s9" in message
        assert "s0, s1, s2" in message

    def test_unknown_layer(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(integrate(raw, tmp_path / "out.h5ad", "--layer", "log"))
        assert "no layer 'log'" in message

    def test_layer_of_counts(self, tmp_path: Path) -> None:
        adata = logged()
        adata.layers["counts"] = counts().X
        adata.write_h5ad(tmp_path / "in.h5ad")
        result = integrate(tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--layer", "counts")
        assert "layers['counts'] holds counts" in one_message(result)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda x: x.__setitem__((3, 2), np.nan), "are missing (NaN), of 1 of"),
            (lambda x: x.__setitem__(4, 0), "1 of 120 cells have no counts at all"),
        ],
        ids=["nan", "empty cell"],
    )
    def test_values(self, tmp_path: Path, spoil: object, words: str) -> None:
        adata = counts()
        x = adata.X.toarray()
        spoil(x)
        adata.X = x
        adata.write_h5ad(tmp_path / "in.h5ad")
        assert words in one_message(integrate(tmp_path / "in.h5ad", tmp_path / "out.h5ad"))

    @pytest.mark.parametrize(
        "options",
        [
            ["--strength", "1.5"],
            ["--genes", "1"],
            ["--latent", "0"],
            ["--seed", "-1"],
            ["--seed", "x"],
            ["--bacth", "x"],
        ],
        ids=" ".join,
    )
    def test_wrong_options_exit_2(self, raw: Path, tmp_path: Path, options: list[str]) -> None:
        result = integrate(raw, tmp_path / "out.h5ad", *options)
        assert result.exit_code == 2
        assert options[0] in result.stderr

    def test_missing_batch_key_exits_2(self, raw: Path, tmp_path: Path) -> None:
        result = run("integrate", raw, tmp_path / "out.h5ad")
        assert result.exit_code == 2
        assert "--batch-key" in result.stderr


def effects(source: Path, *options: object) -> Result:
    return run("effects", source, *options)


class TestEffects:
    @pytest.fixture
    def target(self, done: tuple[Result, Path], tmp_path: Path) -> Path:
        """An integrated file in a folder of its own."""
        return Path(shutil.copy(done[1], tmp_path / "in.h5ad"))

    def test_effects_that_were_found_before(self, target: Path) -> None:
        page, table = target.with_name("out.html"), target.with_name("out.csv")
        before = target.read_bytes()
        result = effects(target, "--report", page, "--table", table)
        assert result.exit_code == 0, result.output
        assert "effects of 3 samples, found before" in result.stdout
        assert f"{page} and {table} written" in result.stdout.splitlines()[-1]
        assert target.read_bytes() == before
        assert only(target.parent, "in.h5ad", "out.html", "out.csv")
        written = pd.read_csv(table)
        expected = bioren.tl.batch_effects(anndata.read_h5ad(target))
        assert list(written) == list(expected)
        np.testing.assert_allclose(written["d"], expected["d"], rtol=1e-5)
        text = page.read_text()
        assert text.rstrip().endswith("</html>")
        assert "in.h5ad" in text
        assert "out.csv" in text

    def test_effects_found_now_are_those_of_integrate(
        self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bioren.cli.commands.VARIABLE_GENES", 30)
        result = effects(raw, "-b", "sample", "--table", tmp_path / "out.csv.gz")
        assert result.exit_code == 0, result.output
        assert "X holds counts" in result.stdout
        assert "30 variable genes" in result.stdout
        integrated = tmp_path / "integrated.h5ad"
        assert run("integrate", raw, integrated, "-b", "sample", "--genes", 30).exit_code == 0
        expected = bioren.tl.batch_effects(anndata.read_h5ad(integrated))
        np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv.gz")["d"], expected["d"])

    def test_another_batch_key_is_looked_at_anew(self, target: Path) -> None:
        table = target.with_name("out.csv")
        for key, words in (("sample", "found before"), ("run", "comparing samples")):
            result = effects(target, "-b", key, "--table", table, "--overwrite")
            assert result.exit_code == 0, result.output
            assert words in result.stdout
        assert set(pd.read_csv(table)["sample"]) == {0, 1, 2}

    def test_condition(self, target: Path) -> None:
        page = target.with_name("out.html")
        assert effects(target, "--condition", "run", "--report", page, "-q").output == ""
        # The option is told with the command that has it.
        words = re.sub(r"<.*?>", " ", page.read_text(), flags=re.DOTALL)
        assert "bioren integrate --controls KEY" in words

    def test_warnings_name_options_and_not_arguments(self, raw: Path, tmp_path: Path) -> None:
        options = ("-b", "sample", "--condition", "sample")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            result = run("integrate", raw, tmp_path / "out.h5ad", *options)
        assert result.exit_code == 0, result.output
        assert "The condition is the batch itself" in result.stderr
        assert "(--batch-key KEY)" in result.stderr
        assert "(--controls KEY)" in result.stderr
        assert "_key=" not in result.stderr

    def test_no_batch_key_and_no_effects(self, raw: Path, tmp_path: Path) -> None:
        message = one_message(effects(raw, "--report", tmp_path / "out.html"))
        assert "--batch-key KEY; obs holds: sample, run, one" in message
        assert only(tmp_path)

    def test_effects_of_an_earlier_version(self, target: Path) -> None:
        adata = anndata.read_h5ad(target)
        del adata.uns["bioren"]["standard_error_r"]
        adata.write_h5ad(target)
        table = target.with_name("out.csv")
        assert "an earlier version" in one_message(effects(target, "--table", table))
        assert effects(target, "--table", table, "-b", "sample", "-q").exit_code == 0

    def test_existing_files_are_refused_and_all_stays_as_it_was(self, target: Path) -> None:
        page, table = target.with_name("out.html"), target.with_name("out.csv")
        table.write_text("precious")
        for options in (
            ("--report", page, "--table", table),
            ("--report", page, "--table", target.parent / "no" / "out.csv", "--overwrite"),
            ("--report", page, "--condition", "typo", "--table", table, "--overwrite"),
            ("--report", target, "--overwrite"),
            ("--report", page, "--table", page),
        ):
            one_message(effects(target, *options))
            assert table.read_text() == "precious"
            assert only(target.parent, "in.h5ad", "out.csv")
        assert effects(target, "--table", table, "--overwrite", "-q").exit_code == 0
        assert table.read_text().startswith("sample,gene,cells")

    def test_nothing_to_write_exits_2(self, target: Path) -> None:
        result = effects(target)
        assert result.exit_code == 2
        assert "--report" in result.stderr

    def test_missing_file(self, tmp_path: Path) -> None:
        message = one_message(effects(tmp_path / "no.h5ad", "--table", tmp_path / "out.csv"))
        assert "there is no such file" in message
        assert only(tmp_path)


def test_warnings_are_one_line_and_leave_the_process_as_it_was(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        warnings.warn("some day", FutureWarning, stacklevel=1)

    monkeypatch.setattr("bioren.tools.integrate", warn)
    before = list(warnings.filters), warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        loud = integrate(raw, tmp_path / "loud.h5ad")
        quiet = integrate(raw, tmp_path / "quiet.h5ad", "--quiet")
    assert loud.stderr == "Warning: mind the gap\n"
    assert quiet.output == ""
    assert (list(warnings.filters), warnings.showwarning) == before


class TestDemo:
    def test_folder_that_is_a_file_is_refused_at_once(self, raw: Path) -> None:
        assert "is a file" in one_message(run("demo", "--output", raw))

    def test_folder_that_cannot_be_made(self, raw: Path) -> None:
        one_message(run("demo", "--output", raw / "demo"))


class TestProcess:
    """The installed command in a process of its own."""

    @staticmethod
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = Path(sys.executable).with_name("bioren")
        if not command.exists():
            pytest.skip("bioren is not installed beside this Python: no command to call")
        return subprocess.run(
            [command, *map(str, arguments)], capture_output=True, text=True, timeout=120
        )

    def test_integrate(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "out.h5ad"
        result = self.call("integrate", raw, target, "-b", "sample", "--latent", 2, "--quiet")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert "X_bioren" in anndata.read_h5ad(target).obsm
        assert only(tmp_path, "out.h5ad")

    def test_error(self, tmp_path: Path) -> None:
        result = self.call("integrate", tmp_path / "no.h5ad", tmp_path / "o.h5ad", "-b", "sample")
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
        assert only(tmp_path)


def test_options_of_messages_are_those_that_the_commands_have() -> None:
    commands = get_command(app).commands
    for option, _, names in OPTIONS.values():
        having = {
            name
            for name, command in commands.items()
            if any(option in parameter.opts for parameter in command.params)
        }
        # map's --reference is the model.
        assert having - ({"map"} if option == "--reference" else set()) == set(names), option


def test_arguments_become_options_and_the_rest_of_a_message_stays() -> None:
    said = in_own_words(
        "Remove less (strength=..., max_removed=(r, d)); genes_key='symbol'; layer=...; "
        "sc.pp.normalize_total(adata, target_sum=1e4)",
        command="integrate",
    )
    assert said == (
        "Remove less (--strength S, --max-shift SD); bioren map --genes-key symbol; --layer NAME; "
        "sc.pp.normalize_total(adata, target_sum=1e4)"
    )
