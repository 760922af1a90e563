"""Exports with proof: what is written plays like its student; changed files are refused; what loses return is not written."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import ExportFault, InputsConfig, Reading, RequestError
from policy_distill.environments.specs import resolve
from policy_distill.evaluation import exports
from policy_distill.evaluation.exports import export_student
from policy_distill.evaluation.measure import measure, named_teacher
from policy_distill.evaluation.parity import decisions_of
from policy_distill.evaluation.verify import verify
from policy_distill.export import artefact, formats
from policy_distill.export.artefact import Artefact
from policy_distill.export.npz import NumpyRunner
from policy_distill.export.runner import Visited
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.rollouts.episodes import evaluate
from policy_distill.support.files import write_json
from policy_distill.teachers.files.folder import find_agent
from tests.report.example import SUMMARY

CARTPOLE = resolve("CartPole-v1")
BALANCE = torch.tensor([0.1, 0.3, 1.0, 1.0])
"""A linear policy that balances the pole for 500 steps: push to where the weighted sum leans."""


def balancing(folder: Path, view: View | None = None, weights: torch.Tensor = BALANCE) -> Path:
    """A saved student with this linear policy."""
    env = gym.make("CartPole-v1")
    student = Student(Architecture(env.observation_space, env.action_space, (), view=view))
    with torch.no_grad():
        student.linears[0].weight.copy_(torch.stack([-weights, weights]))
        student.linears[0].bias.zero_()
    return student.save(folder, extra={"environment": CARTPOLE.to_dict(), "teacher": {"path": "ppo/CartPole-v1"}})


@pytest.mark.parametrize("name", ["npz", "sb3"])
def test_an_artefact_earns_what_its_student_earns(name, tmp_path):
    folder = balancing(tmp_path / "student")
    exported = export_student(str(folder), name, output=str(tmp_path / "out"), episodes=10, workers=0)
    assert exported.parity.equal_actions == 1.0
    assert exported.parity.states >= 10_000
    assert exported.kept.estimate == 1.0
    assert exported.manifest["multiply_adds"] == 8
    assert exported.manifest["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.[nz]*"))
    found = measure(str(tmp_path / "out"), episodes=10, workers=0)
    assert found.episodes.returns.tolist() == evaluate(Student.load(folder), CARTPOLE, list(found.episodes.seeds)).returns.tolist()
    assert found.episodes.returns.mean() > 400


def test_an_artefact_sees_through_its_student_s_view(tmp_path):
    view = View(InputsConfig(keep=(3, 2), history=2), gym.make("CartPole-v1").observation_space)
    folder = balancing(tmp_path / "student", view, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    exported = export_student(str(folder), "npz", output=str(tmp_path / "out"), episodes=5, workers=0)
    assert exported.parity.equal_actions == 1.0
    loaded = pickle.loads(pickle.dumps(Artefact(tmp_path / "out")))
    seeds = [7, 8, 9]
    assert evaluate(loaded, CARTPOLE, seeds).returns.tolist() == evaluate(Student.load(folder), CARTPOLE, seeds).returns.tolist()


def test_decisions_hold_what_the_student_saw_and_did(tmp_path):
    student = Student.load(balancing(tmp_path / "student"))
    decisions = decisions_of(student, CARTPOLE, states=100)
    assert len(decisions.visited) >= 100
    np.testing.assert_array_equal(decisions.actions, student.act(decisions.visited.seen["observation"]))


def test_a_certificate_of_an_artefact_verifies(tmp_path, capsys):
    run = tmp_path / "run"
    balancing(run / "student")
    arguments = ["--format", "npz", "--certify", "0.5", "--episodes", "5", "--workers", "0", "--max_episodes", "60"]
    assert main(["export_student", "--student", str(run), *arguments]) == 0
    assert "certified" in capsys.readouterr().out
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    assert main(["verify_certificate", "--certificate", str(moved / "exports" / "npz"), "--episodes", "5", "--workers", "0"]) == 0


def test_a_certificate_names_a_teacher_that_ships_with_the_project(tmp_path):
    """Its path is another one on the next machine."""
    folder = balancing(tmp_path / "student")
    description = json.loads((folder / "student.json").read_text())
    path = find_agent("ppo/CartPole-v1").zip_path
    (folder / "student.json").write_text(json.dumps({**description, "teacher": {"path": str(path)}}))
    export_student(str(folder), "npz", output=str(tmp_path / "out"), certify_share=0.5, episodes=2, max_episodes=60, workers=0)
    recorded = json.loads((tmp_path / "out" / "certificate.json").read_text())["teacher"]
    assert recorded["path"] == "ppo/CartPole-v1"
    found = verify(shutil.copytree(tmp_path / "out", tmp_path / "deep" / "er") / "certificate.json", episodes=2, workers=0)
    assert found.holds, found.objections


def test_a_recorded_teacher_that_is_no_longer_there_is_found_by_its_name(tmp_path):
    description = {"path": str(tmp_path / "gone.zip"), "name": "ppo/CartPole-v1"}
    write_json(tmp_path / "student.json", {"teacher": description})
    assert named_teacher(str(tmp_path), None) == ("ppo/CartPole-v1", Reading())
    (tmp_path / "gone.zip").touch()
    assert named_teacher(str(tmp_path), None) == (str(tmp_path / "gone.zip"), Reading())


def test_only_a_certificate_asks_for_the_code_of_the_teacher(tmp_path):
    folder = balancing(tmp_path / "student")
    description = json.loads((folder / "student.json").read_text())
    write_json(folder / "student.json", {**description, "teacher": {"path": "ppo/CartPole-v1", "reading": {"extractor": "net.py:Net"}}})
    assert export_student(str(folder), "npz", output=str(tmp_path / "out"), episodes=2, workers=0).certified is None
    with pytest.raises(RequestError, match=r"net\.py:Net, which is code: name it again, with .* --teacher_extractor"):
        export_student(str(folder), "npz", output=str(tmp_path / "other"), certify_share=0.5, episodes=2, workers=0)


def test_a_failed_export_leaves_no_folder(tmp_path, monkeypatch):
    run = tmp_path / "run"
    balancing(run / "student")

    def wrong(self, seen, state):
        return np.zeros(len(state), np.int64), np.zeros((len(state), 2), np.float32), state

    before = sorted(run.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(NumpyRunner, "__call__", wrong)
        with pytest.raises(ExportFault):
            export_student(str(run), "npz", episodes=5, workers=0)
    assert sorted(run.rglob("*")) == before
    export_student(str(run), "npz", episodes=2, workers=0)
    assert [path.name for path in (run / "exports").iterdir()] == ["npz"]


def test_what_does_not_act_alike_is_not_written(tmp_path, monkeypatch):
    folder = balancing(tmp_path / "student")
    (tmp_path / "out").mkdir()

    def wrong(self, seen, state):
        return np.zeros(len(state), np.int64), np.zeros((len(state), 2), np.float32), state

    monkeypatch.setattr(NumpyRunner, "__call__", wrong)
    with pytest.raises(ExportFault, match=r"npz is not written: it takes the student's action in only \d+\.\d+% of its states"):
        export_student(str(folder), "npz", output=str(tmp_path / "out" / "npz"), episodes=5, workers=0)
    assert list((tmp_path / "out").iterdir()) == []
    # the same files as a quantised format, which may decide otherwise but has to keep the return
    rounded = dataclasses.replace(formats.FORMATS["npz"], bits=8)
    monkeypatch.setitem(formats.FORMATS, "npz", rounded)
    monkeypatch.setattr(exports, "named_teacher", lambda *_: None)
    with pytest.raises(ExportFault, match=r"npz is not written: it keeps -?0\.\d+ \[.*\] of the student's return"):
        export_student(str(folder), "npz", output=str(tmp_path / "out" / "npz"), episodes=10, workers=0)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def exported(tmp_path) -> Path:
    export_student(str(balancing(tmp_path / "student")), "npz", output=str(tmp_path / "out"), episodes=2, workers=0)
    return tmp_path / "out"


def test_an_existing_artefact_is_replaced_and_anything_else_is_kept(exported, tmp_path):
    before = (exported / "policy.json").stat().st_ino
    export_student(str(tmp_path / "student"), "npz", output=str(exported), episodes=2, workers=0)
    assert (exported / "policy.json").stat().st_ino != before
    (exported / "policy.json").unlink()
    with pytest.raises(RequestError, match=r"^\S+ exists and is no exported policy: choose another folder with --output$"):
        export_student(str(tmp_path / "student"), "npz", output=str(exported), episodes=2, workers=0)


@pytest.mark.parametrize("name", ["policy.npz", "student/student.json", "student/student.safetensors"])
def test_changed_files_are_refused(name, exported):
    path = exported / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RequestError, match=f"{path.name} is not the file that was exported"):
        Artefact(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2, this version reads 1"),
        ({"policy_format": "exe"}, "names the unknown format 'exe'"),
        ({"policy_format": ["npz"]}, "names the unknown format"),
        ({"files": {"student/student.json": "00"}}, "does not list the files"),
        ({"files": {}}, "does not list the files"),
        ({"files": {"../policy.npz": "00"}}, "does not list the files"),
        ({"numbers": None}, "does not list the files"),
    ],
)
def test_a_damaged_manifest_is_refused(change, message, exported):
    path = exported / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RequestError, match=message):
        Artefact(exported)


def test_code_from_outside_is_not_run(exported, monkeypatch):
    """Files with code are compared with those that this version writes; others need ``trust``."""
    code = dataclasses.replace(formats.FORMATS["npz"], is_code=True, repeatable=True)
    monkeypatch.setitem(formats.FORMATS, "npz", code)
    Artefact(exported)
    manifest = json.loads((exported / "policy.json").read_text())
    other = Student.load(exported / "student")
    other.requires_grad_(False).linears[0].weight.neg_()
    artefact.write(other, "npz", exported, Visited({}, np.zeros((0, 0), np.float32)))
    (exported / "policy.json").write_text(json.dumps(manifest | {"files": {"policy.npz": artefact.sha256(exported / "policy.npz")}}))
    with pytest.raises(
        RequestError, match=r"holds code \(policy\.npz\), and running it is only allowed with --trust, since it is not what"
    ):
        Artefact(exported)
    assert Artefact(exported, trust=True).params == other.params
    monkeypatch.setitem(formats.FORMATS, "npz", dataclasses.replace(code, repeatable=False))
    with pytest.raises(RequestError, match="only allowed with --trust"):
        Artefact(exported)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "exe"], "format is 'exe'; the formats are sb3, onnx, onnx-int8, c, c-int8"),
        (["--format", "npz", "--normalization", "none"], "a student needs no --normalization"),
        (["--format", "npz", "--episodes", "0"], "episodes"),
        (["--format", "npz", "--env", "Acrobot-v1"], "Acrobot-v1"),
        (["--format", "npz", "--output", "."], "is the working folder"),
        (["--format", "npz", "--output", "x" * 300], "cannot be used (File name too long)"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(arguments, message, tmp_path, capsys, monkeypatch):
    folder = balancing(tmp_path / "student")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["export_student", "--student", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent != folder) == ["empty", "student"]


def test_a_missing_tool_or_teacher_is_named_before_any_work(tmp_path, monkeypatch):
    folder = balancing(tmp_path / "student")
    monkeypatch.setattr(exports, "decisions_of", lambda *_: pytest.fail("the student was played"))
    for compiler, message in (("no-such-compiler", "which CC names, is not installed"), ("cc '", "cannot be read as a command")):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(RequestError, match=message):
            export_student(str(folder), "c", workers=0)
    masked = dataclasses.replace(formats.FORMATS["npz"], check=formats.FORMATS["sb3"].check)
    monkeypatch.setattr(formats.sb3, "why_not_exported", lambda student: "it is round")
    monkeypatch.setitem(formats.FORMATS, "npz", masked)
    with pytest.raises(RequestError, match="cannot be written as a Stable-Baselines3 zip: it is round"):
        export_student(str(folder), "npz", workers=0)
    monkeypatch.undo()
    description = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps(description | {"teacher": {}}))
    with pytest.raises(RequestError, match="does not name the teacher that it was distilled from: give --teacher"):
        export_student(str(folder), "npz", certify_share=0.9, workers=0)


def test_a_link_is_followed(tmp_path):
    folder, link = balancing(tmp_path / "student"), tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    export_student(str(folder), "npz", output=str(link), episodes=2, workers=0)
    assert link.is_symlink()
    assert Artefact(tmp_path / "real").format == "npz"


def test_a_run_s_result_holds_the_figures_of_its_exports(tmp_path):
    run = tmp_path / "run"
    balancing(run / "student")
    write_json(run / "result.json", SUMMARY)
    exported = export_student(str(run), "npz", episodes=2, workers=0)
    found = json.loads((run / "result.json").read_text())["exports"]["npz"]
    assert found["parity"] == dataclasses.asdict(exported.parity)
    assert "numbers" not in found  # the states of a self-test may have megabytes
    (run / "result.json").write_text("[]")
    before = (run / "exports" / "npz" / "policy.json").read_bytes()
    with pytest.raises(RequestError, match=r"result\.json"):
        export_student(str(run), "npz", episodes=2, workers=0)
    assert (run / "exports" / "npz" / "policy.json").read_bytes() == before


def test_a_memory_that_goes_astray_is_not_written(tmp_path, monkeypatch):
    env = gym.make("CartPole-v1")
    torch.manual_seed(0)
    student = Student(Architecture(env.observation_space, env.action_space, (8,), memory=4))
    folder = student.save(tmp_path / "student", extra={"environment": CARTPOLE.to_dict()})
    call = NumpyRunner.__call__

    def forgetful(self, seen, state):
        actions, outputs, after = call(self, seen, state)
        return actions, outputs, after * np.float32(0.9)

    monkeypatch.setattr(NumpyRunner, "__call__", forgetful)
    with pytest.raises(ExportFault, match="npz is not written: its recurrent state differs"):
        export_student(str(folder), "npz", output=str(tmp_path / "out"), episodes=2, workers=0)


def test_an_agent_is_no_student(capsys):
    assert main(["export_student", "--student", "ppo/CartPole-v1", "--format", "npz"]) == 2
    assert "is no student" in capsys.readouterr().err


def test_an_artefact_does_not_sample(exported):
    with pytest.raises(RequestError, match="leave --stochastic out"):
        measure(str(exported), episodes=2, workers=0, stochastic=True)
