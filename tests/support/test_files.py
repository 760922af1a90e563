"""Writing: all of it or none of it, and nothing left behind; tensors in files that nobody has to remove."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from policy_distill.config import RequestError, StorageFault
from policy_distill.support.files import make_folder, mapped_tensor, new_folders_above, replaced_folder, write_atomically


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
    assert synced == [False, True], "the file, then the folder with its new name"


@pytest.mark.parametrize("failing", ["mkstemp", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_wherever_the_disk_fails_the_old_file_stays_and_one_line_says_which_file_it_was(failing, code, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    owner = {"mkstemp": tempfile, "write": None, "fsync": os, "replace": Path}[failing]
    if owner is not None:
        monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(StorageFault) as caught:
        write_atomically(tmp_path / "a.txt", fail if failing == "write" else lambda target: target.write_text("new"))
    monkeypatch.undo()
    assert f"{tmp_path / 'a.txt'} cannot be written ({os.strerror(code)}): make room, or give another folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(StorageFault, match=rf"the folder {tmp_path / 'gone'} does not exist any more"):
        write_atomically(tmp_path / "gone" / "a.txt", lambda target: target.write_text("new"))
    with pytest.raises(StorageFault, match="does not exist any more"):
        make_folder(tmp_path / "gone" / "student")
    assert make_folder(tmp_path / "student") == make_folder(tmp_path / "student") == tmp_path / "student"
    assert os.listdir(tmp_path) == ["student"]


def test_a_disk_that_is_really_full_keeps_the_old_file(tmp_path):
    """A file system of 64 kB; making one needs rights that few users have."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        write_atomically(disk / "a.txt", lambda target: target.write_text("old"))
        with pytest.raises(StorageFault, match="No space left on device"):
            write_atomically(disk / "a.txt", lambda target: target.write_bytes(bytes(1 << 20)))
        assert (disk / "a.txt").read_text() == "old"
        assert os.listdir(disk) == ["a.txt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_have_the_permissions_that_the_user_s_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "a.txt", lambda target: target.write_text("new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Tensors in files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_a_mapped_tensor_is_zeros_that_can_be_written(dtype, shape, tmp_path):
    tensor = mapped_tensor(tmp_path, shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert not tensor.any()
    tensor[1:] = 1
    assert tensor[1:].all()
    assert not tensor[0].any()


def test_a_mapped_tensor_is_a_file_of_the_folder_s_that_has_no_name(tmp_path, monkeypatch):
    """Its inode is on the folder's device, of the tensor's size, shared with the tensor, and no directory entry leads to it."""
    seen: list[os.stat_result] = []
    mapped = mmap.mmap

    def spy(descriptor: int, size: int) -> mmap.mmap:
        seen.append(os.fstat(descriptor))
        return mapped(descriptor, size)

    monkeypatch.setattr(mmap, "mmap", spy)
    mapped_tensor(tmp_path, (1000, 3), torch.float32)
    assert seen[0].st_size == 12_000
    assert seen[0].st_blocks * 512 >= 12_000  # there is room on the disk before a row is written
    assert seen[0].st_dev == tmp_path.stat().st_dev
    assert seen[0].st_nlink == 0
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_leaves_nothing_behind(tmp_path):
    code = f"""
import os, pathlib, signal, torch
from policy_distill.support.files import mapped_tensor
tensor = mapped_tensor(pathlib.Path({str(tmp_path)!r}), (1000, 3), torch.float32).fill_(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RequestError, match=r"no room for 40 MB in .*No space left on device.*--output"):
        mapped_tensor(tmp_path, (10_000_000,), torch.float32)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with replaced_folder(target) as folder:
            (folder / "file").write_text(content)
        assert (target / "file").read_text() == content
    with contextlib.suppress(OSError), replaced_folder(target) as folder:
        (folder / "file").write_text("third")
        raise OSError("no more")
    assert (target / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_fails_leaves_no_new_folder_that_is_empty(tmp_path):
    (tmp_path / "old").mkdir()

    def fail(target: Path, *made: str) -> None:
        with new_folders_above(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for name in made:
                (target.parent / name).touch()
            raise OSError

    for place, made, left in (("old/out", (), ["old"]), ("a/b/out", (), ["old"]), ("a/b/out", ("kept",), ["a", "a/b", "a/b/kept", "old"])):
        with pytest.raises(OSError):  # noqa: PT011
            fail(tmp_path / place, *made)
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left
    with new_folders_above(tmp_path / "new" / "out"):
        (tmp_path / "new").mkdir()
    assert (tmp_path / "new").is_dir()
