"""A file is either whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bioren.files.atomic import atomic_write


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == tmp_path  # a rename within a folder is atomic
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_all_as_it_was(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)

    def fail() -> None:
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == (["a.txt"] if old else [])
    assert not old or path.read_text() == old


def test_existing_file_is_refused_before_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="exists already"), atomic_write(path):
        pytest.fail("entered")
    assert path.read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_is_refused(tmp_path: Path, overwrite: bool) -> None:
    with (
        pytest.raises(FileExistsError, match="is a folder"),
        atomic_write(tmp_path, overwrite=overwrite),
    ):
        pytest.fail("entered")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="make it first"),
        atomic_write(tmp_path / "b" / "a"),
    ):
        pytest.fail("entered")


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    with (
        pytest.raises(FileNotFoundError, match="is not a folder"),
        atomic_write(tmp_path / "b" / "a"),
    ):
        pytest.fail("entered")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which nobody can write")
def test_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(OSError, match="/proc cannot be written"), atomic_write(Path("/proc/a.txt")):
        pytest.fail("entered")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "whole") as temporary:
        temporary.write_text("x")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "whole")]
    assert modes[0] == modes[1]


def test_permissions_of_a_replaced_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch(mode=0o600)
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("x")
    assert path.stat().st_mode & 0o777 == 0o600


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path, link = tmp_path / "there" / "a.txt", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    with atomic_write(link, overwrite=True) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
