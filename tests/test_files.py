"""Writing: all of it or none of it, and nothing left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from policy_distill.files import write_atomically


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = write_atomically(tmp_path / "a.txt", lambda target: target.write_text("new"))
    assert path == tmp_path / "a.txt"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write_atomically(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def look(target: Path) -> None:
        target.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"

    write_atomically(tmp_path / "a.txt", look)
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_temporary_file_is_beside_its_target_and_ends_alike(tmp_path):
    """In the same folder a rename is atomic; savers that add a suffix where there is none find theirs."""
    seen: list[Path] = []
    write_atomically(str(tmp_path / "a.zip"), lambda target: seen.append(target))
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".zip"


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((tmp_path / "a.txt").exists()))
    write_atomically(tmp_path / "a.txt", lambda target: target.write_text("new"))
    assert synced == [False]


def test_files_have_the_permissions_that_the_user_s_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "a.txt", lambda target: target.write_text("new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
