"""Hostile files of every kind, read while Python itself reports what is done: nothing is imported, run, written or sent."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from policy_distill.commands.cli import main
from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.evaluation.measure import load_policy
from policy_distill.policies.student import Student
from policy_distill.teachers import Teacher
from tests.fuzz.corpus import CANARY, KINDS, folder_of, make_corpus, replace_member
from tests.fuzz.run import answers, faults_of
from tests.fuzz.worker import peak_mb, reset_peak


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_hostile_files_make_the_project_do_nothing(corpus):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.audit", str(corpus)], capture_output=True, text=True, timeout=250, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == []
    assert not found["executed"]
    assert "ran" not in done.stdout.splitlines()[:-1]
    outcomes = found["outcomes"]
    for kind in ("agent's args.yml", "student.json", "environment", "certificate.json"):
        assert any("runs its code: give --env" in outcome for outcome in outcomes[kind]), (kind, outcomes[kind])
    assert any("give --trust" in outcome for outcome in outcomes["config.yaml"])
    assert "read" in outcomes["agent's data"]  # the pickles in it are not looked at


def test_good_files_are_read(corpus):
    for kind in KINDS:
        kind.read(folder_of(kind, corpus))


def test_damaged_files_of_every_kind_are_read_or_refused(tmp_path):
    """A few of those that scripts/fuzz_readers.py draws; it draws thousands."""
    found = list(answers(tmp_path / "corpus", 100_000, 100_150))
    assert len(found) == 150
    assert [(answer["number"], faults_of(answer), answer["error"]) for answer in found if faults_of(answer)] == []
    assert {answer["outcome"] for answer in found} == {"read", "refused"}


def test_a_fault_is_reported():
    good = {"outcome": "read", "executed": [], "seconds": 0.1, "mb": 300}
    assert faults_of(good) == []
    assert faults_of({**good, "outcome": "traceback"}) == ["traceback"]
    assert faults_of({**good, "executed": ["import"], "seconds": 6, "mb": 1100}) == ["executed", "over 5 s", "over 1 GiB"]


def refusal(read: Callable[[], object]) -> str:
    """What a reader says about a bomb, for which it takes neither time nor memory."""
    reset_peak()
    before, started = peak_mb(), time.process_time()
    with pytest.raises(RequestError) as caught:
        read()
    assert time.process_time() - started < 5
    assert peak_mb() - before < 600
    return str(caught.value)


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak of the memory")


def with_data(corpus: Path, target: Path, **changes: Any) -> Path:
    """The corpus's agent with entries of ``data`` changed."""
    path = target / "agent.zip"
    path.write_bytes((corpus / "sac/agent/agent.zip").read_bytes())
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    replace_member(path, "data", json.dumps({**data, **changes}).encode())
    return path


SPACES = {
    "a billion numbers": {":type:": "Box", "dtype": "float32", "_shape": [10**9], "low": "-1", "high": "1"},
    "a billion choices": {":type:": "Discrete", "n": "1000000000", "start": "0"},
    "more choices than a number": {":type:": "Discrete", "n": "9" * 30, "start": "0"},
    "a vector of huge choices": {":type:": "MultiDiscrete", "nvec": "[1000000000 1000000000]"},
    "choices whose sum overflows": {":type:": "MultiDiscrete", "nvec": f"[{2**62} {2**62} {2**62}]"},
    "a square of switches": {":type:": "MultiBinary", "n": "[100000 100000]"},
    "a long text": {":type:": "Box", "dtype": "float32", "_shape": [2], "low": "1 " * (4 << 20), "high": "1"},
}


@needs_proc
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("role", ["observation_space", "action_space"])
def test_spaces_of_any_size_are_refused(name, role, corpus, tmp_path):
    if (name, role) == ("a long text", "observation_space"):
        return  # bounds of observations are not needed
    path = with_data(corpus, tmp_path, **{role: SPACES[name]})
    assert str(path) in refusal(lambda: Teacher.load(path))


@needs_proc
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_sizes": [10**9]}, {"hidden_sizes": [10**5, 10**5]}, {"hidden_sizes": [2**70]}, {"hidden_sizes": [4] * 10_000},
        {"hidden_sizes": "88"}, {"hidden_sizes": [8.0]}, {"hidden_sizes": [True]}, {"hidden_sizes": [-1]}, {"hidden_sizes": {}},
        {"action_space": {"type": "Discrete", "n": 10**9, "start": 0}}, {"activation": "eval"}, {"format": [1]},
        {"observation_space": {"type": "Box", "shape": [10**9], "dtype": "float32", "low": [0.0], "high": [1.0]}},
        {"observation_space": {"type": "MultiDiscrete", "nvec": [10**18] * 20, "start": [0] * 20}},
        {"observation_space": {"type": "Box", "shape": [2], "dtype": "(1000000000,)f4", "low": [0, 0], "high": [1, 1]}},
        {"environment": "CartPole-v1"}, {"environment": {"id": 3}}, {"environment": {"id": "CartPole-v1", "kwargs": []}},
        {"teacher": "ppo"},
        {"environment": {"id": "CartPole-v1", "max_episode_steps": "9"}}, {"environment": {"id": "CartPole-v1", "wrappers": [["a"]]}},
        {"environment": {"id": "CartPole-v1", "imports": True}}, {"teacher": {"path": 3}},
        {"inputs": {"keep": [5]}}, {"inputs": {"keep": ["0:1000000"] * 1000}}, {"inputs": {"keep": [2**70]}}, {"inputs": [0]},
        {"inputs": {"history": 10**9}}, {"inputs": {"history": [2]}}, {"inputs": {"noise": [10**400]}}, {"inputs": {"keys": ["a"]}},
        {"inputs": {"noise": {}}}, {"inputs": {"wrapper": f"{CANARY}:fire"}}, {"inputs": {"wrapper": 3}}, {"inputs": {"more": 1}},
        {"memory": 4}, {"memory": {"kind": "gru"}}, {"memory": {"kind": "gru", "size": 10**9}}, {"memory": {"kind": "gru", "size": 2**70}},
        {"memory": {"kind": "lstm", "size": 4}}, {"memory": {"kind": ["gru"], "size": True}},
        {"varying_inputs": []}, {"varying_inputs": [1, 0]}, {"varying_inputs": [10**9]}, {"varying_inputs": "01"},
        {"varying_inputs": [[0]]},
        {"encoder": [4]}, {"encoder": {"channels": [10**9]}}, {"encoder": {"channels": [4] * 10_000}}, {"encoder": {}},
        {"teacher": {"path": "a", "reading": 3}}, {"action_units": 3}, {"action_units": [[1.0]]}, {"action_units": [[1.0], [0.0]]},
    ],
    ids=str,
)  # fmt: skip
def test_students_that_cannot_be_are_refused(changes, corpus, tmp_path):
    folder = Path(shutil.copytree(corpus / "run/student", tmp_path / "student"))
    description = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**description, **changes}))
    assert refusal(lambda: load_policy(str(folder))).isprintable()


def test_a_student_whose_weights_are_no_numbers_is_refused(corpus, tmp_path):
    folder = Path(shutil.copytree(corpus / "run/student", tmp_path / "student"))
    weights = load_file(folder / "student.safetensors")
    weights["scale"][0] = float("nan")
    save_file(weights, folder / "student.safetensors")
    with pytest.raises(RequestError, match="scale holds NaN or infinity"):
        Student.load(folder)


@needs_proc
@pytest.mark.parametrize(
    ("name", "kwargs"), [("VecFrameStack", {"n_stack": 10**9}), ("PadObservation", {"size": 10**10}), ("VecFrameStack", {"n_stack": "2"})]
)
def test_wrappers_that_ask_for_too_much_are_refused(name, kwargs):
    assert "the wrapper" in refusal(lambda: make(EnvironmentSpec("CartPole-v1", wrappers=((name, kwargs),))))


@needs_proc
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("declared", [None, 100])
def test_members_that_unpack_to_a_gigabyte_are_refused(method, declared, corpus, tmp_path):
    path = tmp_path / "agent.zip"
    with zipfile.ZipFile(corpus / "sac/agent/agent.zip") as source, zipfile.ZipFile(path, "w", method) as bomb:
        bomb.writestr("data", source.read("data"))
        with bomb.open("policy.pth", "w", force_zip64=True) as stream:
            for _ in range(1024 if method == zipfile.ZIP_DEFLATED else 300):
                stream.write(b"\x00" * (1 << 20))
    if declared is not None:
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, declared)
        path.write_bytes(content)
    refusal(lambda: Teacher.load(path))


@pytest.mark.parametrize("text", ["\x1b[31m", "a\x00b", "\ud800", "x" * 10**5, "~nobody/agent", "/", "..", "a/" * 3000])
def test_names_that_are_none(text, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # ".." is a folder without an agent
    with pytest.raises(RequestError) as caught:
        Teacher.load(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100


def test_a_pipe_in_a_file_s_place_does_not_wait(corpus, tmp_path):
    folder = Path(shutil.copytree(corpus / "run/student", tmp_path / "student"))
    (folder / "student.safetensors").unlink()
    os.mkfifo(folder / "student.safetensors")
    with pytest.raises(RequestError, match="no regular file"):
        Student.load(folder)
    (folder / "student.json").unlink()
    os.mkfifo(folder / "student.json")
    with pytest.raises(RequestError, match="no regular file"):
        Student.load(folder)


@pytest.mark.parametrize("path", ["a" * 5000, "nul\x00", "\udcff", "/dev/zero"], ids=["long", "nul", "surrogate", "device"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check_teacher", "--teacher"], ["evaluate_policy", "--policy"], ["render_policy", "--policy"],
        ["verify_certificate", "--certificate"],
        ["compare_policies", "--teacher", "ppo/LunarLander-v3", "--policy"], ["run_suite", "--teachers"],
        ["run_ablation", "--study"],
        ["distill_policy", "--config"], ["distill_policy", "--teacher", "ppo/LunarLander-v3", "--env"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)  # fmt: skip
def test_each_command_refuses_a_path_that_cannot_be(arguments, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, path]) == 2
    line = capsys.readouterr().err
    assert line.startswith("policy-distill: ")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
