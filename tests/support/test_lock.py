"""One process writes into a run folder at a time; a dead one does not keep the others out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policy_distill.config import RequestError
from policy_distill.support import files
from policy_distill.support.files import LOCK, locked

HOLD = """
import os, pathlib, sys, time
from policy_distill.support.files import locked
with locked(pathlib.Path(sys.argv[1])):
    if sys.argv[2] == "with a child" and os.fork() == 0:
        time.sleep(60)
    print(os.getpid(), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(folder: Path, kind: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refused(folder: Path) -> str:
    with (
        pytest.raises(RequestError, match=r"is in use by .*: wait for it, or choose another folder with --output") as error,
        locked(folder),
    ):
        pass
    return str(error.value)


def test_a_locked_folder_is_refused_and_the_process_is_named(tmp_path):
    with holder(tmp_path) as process:
        assert f"process {process.pid} on " in refused(tmp_path)
        assert f"process {process.pid} on " in refused(tmp_path)
        process.communicate("\n")
        with locked(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_does_not_keep_the_lock_and_neither_do_its_children(tmp_path):
    with holder(tmp_path, "with a child") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).read_text().startswith(f"process {process.pid} on ")
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_excludes_itself(tmp_path):
    with locked(tmp_path):
        (tmp_path / "link").symlink_to(tmp_path)
        assert f"another run of this process ({os.getpid()})" in refused(tmp_path)
        refused(tmp_path / "link")
        other = subprocess.run([sys.executable, "-c", HOLD, tmp_path, "alone"], capture_output=True, text=True, input="", check=False)
        assert "is in use by process" in other.stderr.splitlines()[-1]
    with locked(tmp_path):
        pass


def test_an_exception_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    with locked(tmp_path):
        pass


def test_what_a_lock_file_says_is_one_printable_line(tmp_path):
    with holder(tmp_path):
        (tmp_path / LOCK).write_text("a\x1b[2J\nb" * 1000)
        line = refused(tmp_path)
    assert line.isprintable()
    assert len(line) < 1000


def test_of_threads_that_begin_at_the_same_time_one_has_the_folder(tmp_path):
    at_once, over, refusals = threading.Barrier(8), threading.Barrier(8), []

    def run() -> None:
        at_once.wait()
        try:
            with locked(tmp_path):
                over.wait()
        except RequestError as error:
            refusals.append(str(error))
            over.wait()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 7


def test_a_lock_file_that_is_a_link_is_refused_and_its_target_is_left(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    for _ in range(2):
        with pytest.raises(RequestError, match=r"\.lock cannot be opened \(Too many levels of symbolic links\)"), locked(tmp_path / "run"):
            pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    with pytest.raises(RequestError, match=r"\.lock cannot be locked \(No locks available\): choose another folder"), locked(tmp_path):
        pass
