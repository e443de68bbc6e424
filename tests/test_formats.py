"""Files of every format that was ever written are read, and map as they did; see `formats`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import bioren
from bioren.files import container
from bioren.files.container import FORMAT_VERSION, read

FOLDER = Path(__file__).parent / "formats"
FILES = sorted(FOLDER.glob("*.bioren"))


@pytest.fixture(scope="module")
def formats():
    spec = importlib.util.spec_from_file_location("formats_write", FOLDER / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_each_version_has_its_fixtures(version):
    # If this fails, run tests/formats/write.py and commit what it writes.
    names = {path.name for path in FILES}
    for kind in ("model", "published-model", "population"):
        assert f"format{version}-{kind}.bioren" in names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_today_are_read_by_the_next_version(path, monkeypatch, formats):
    before = formats.mapped(path)
    monkeypatch.setattr(container, "FORMAT_VERSION", FORMAT_VERSION + 1)
    for name, array in formats.mapped(path).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_maps_as_it_did(path, formats):
    found = formats.mapped(path)
    with np.load(path.with_suffix(".npz")) as expected:
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=2e-3, err_msg=name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fixtures_are_small_and_hold_what_they_say(path):
    assert path.stat().st_size < 30_000
    kind = "population" if "population" in path.stem else "model"
    assert read(path, ("population", "model")).kind == kind
    population = bioren.Population.load(path)
    assert (population.published is not None) == ("published" in path.stem)
    assert population.cells.to_dict() == {"a": 60, "b": 45}
    assert len(population.genes) == 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_old_files_are_written_anew_in_the_current_format(path, tmp_path, formats):
    loaded = (bioren.Population.load if "population" in path.stem else bioren.load)(path)
    again = tmp_path / path.name
    loaded.save(again)
    before, after = formats.mapped(path), formats.mapped(again)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    if path.stem.startswith(f"format{FORMAT_VERSION}-"):
        assert again.read_bytes() == path.read_bytes()
