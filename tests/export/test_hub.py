"""A run as a repository for the Hub: its card, its files, and that it is read like the run; uploads go to a stand-in."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from policy_distill.commands.cli import main
from policy_distill.config import Fault, RequestError
from policy_distill.evaluation.measure import measure
from policy_distill.evaluation.teacher_check.claims import find_claim
from policy_distill.export import hub
from policy_distill.support.files import write_json
from tests.report.example import SUMMARY
from tests.small_worlds import random_student

CERTIFICATE = {"verdict": "certified", "reason": "the student keeps at least 0.95", "confidence": 0.95, "episodes": 252}


def export_onnx(run: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["export_student", "--student", str(run), "--format", "onnx", "--episodes", "3", "--workers", "0"]) == 0


def export_npz(run: Path) -> None:
    assert main(["export_student", "--student", str(run), "--format", "npz", "--episodes", "3", "--workers", "0"]) == 0


def metadata_of(card: str) -> dict[str, Any]:
    first, text, _ = card.split("---\n", 2)
    assert first == ""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_it_holds_the_run_s_files_and_is_read_like_the_run(run, tmp_path, capsys):
    export_onnx(run)
    write_json(run / "certificate.json", CERTIFICATE)
    target = tmp_path / "deep" / "repository"
    files = hub.write_repository(run, target)
    in_export = [f"exports/onnx/{name}" for name in ("policy.json", "policy.onnx", "student/student.json", "student/student.safetensors")]
    assert files == sorted(
        ["README.md", "certificate.json", "config.yaml", "policy.onnx", "result.json", "student.zip", *hub.STUDENT, *in_export]
    )
    for name in files:
        source = {"policy.onnx": "exports/onnx/policy.onnx"}.get(name, name)
        assert name == "README.md" or (target / name).read_bytes() == (run / source).read_bytes()
    for policy in (target, target / "exports" / "onnx", target / "student.zip"):
        found, expected = (measure(str(path), env="CartPole-v1", episodes=5, workers=0) for path in (policy, run))
        assert found.episodes.returns.tolist() == expected.episodes.returns.tolist()


def test_the_card_says_what_was_kept_and_how_to_use_it(run):
    summary = copy.deepcopy(SUMMARY) | {"certificate": CERTIFICATE}
    text = hub.card(summary, has_zip=True, exports=["c", "onnx"])
    metadata = metadata_of(text)
    assert metadata["tags"][:2] == ["CartPole-v1", "reinforcement-learning"]
    assert metadata["library_name"] == "stable-baselines3"
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "mean_reward", "value": "490.04 +/- 12.36", "name": "mean_reward", "verified": False}]
    for line in (
        "| student | 490.0 ± 12.4, 130 parameters |",
        "| teacher | 500.0 ± 0.0, 67,586 parameters |",
        "| retention | 0.981 [0.967, 0.993] |",
        "| certificate | certified: the student keeps at least 0.95 (95% confidence, 252 episodes) |",
    ):
        assert line in text
    assert all(part in text for part in ("evaluate_policy", "PPO.load", "policy.onnx", "--policy student/exports/NAME`: c, onnx."))
    plain = hub.card(SUMMARY, has_zip=False, exports=[])
    assert metadata_of(plain)["library_name"] == "policy-distill"
    assert not any(part in plain for part in ("PPO.load", "policy.onnx", "exports"))
    assert "| certificate | none |" in plain


def test_other_programs_read_the_card(run, tmp_path):
    hub.write_repository(run, tmp_path / "repository")
    claim = find_claim(tmp_path / "repository" / "student.zip")
    assert claim is not None
    assert (claim.mean, claim.std) == (490.04, 12.36)
    repocard = pytest.importorskip("huggingface_hub").ModelCard.load(tmp_path / "repository" / "README.md")
    assert repocard.data.eval_results[0].metric_value == "490.04 +/- 12.36"


def test_an_export_of_another_student_is_left_out(run, tmp_path):
    export_onnx(run)
    env = gym.make("CartPole-v1")
    random_student(env.observation_space, env.action_space, seed=1).save(run / "student")
    assert not [name for name in hub.write_repository(run, tmp_path / "repository") if "onnx" in name]


def test_a_changed_export_is_refused(run, tmp_path):
    export_npz(run)
    path = run / "exports" / "npz" / "policy.npz"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RequestError, match=r"policy\.npz is not the file that was exported"):
        hub.write_repository(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_repository_is_replaced(run, tmp_path):
    target = tmp_path / "repository"
    hub.write_repository(run, target)
    (target / "stale.txt").touch()
    assert "stale.txt" not in hub.write_repository(run, target)
    (target / "README.md").write_text("# My own")
    with pytest.raises(RequestError, match="no repository written by this command"):
        hub.write_repository(run, target)
    assert (target / "README.md").read_text() == "# My own"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "run"]  # nothing is left beside it


@pytest.mark.parametrize("missing", ["result.json", "student/student.safetensors"])
def test_what_is_no_run_is_refused(missing, run, tmp_path):
    (run / missing).unlink()
    with pytest.raises(RequestError, match=r"name the folder of a completed run"):
        hub.write_repository(run, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_damaged_result_leaves_nothing(run, tmp_path):
    write_json(run / "result.json", {"env": "CartPole-v1"})
    with pytest.raises(RequestError, match=r"result\.json cannot be read"):
        hub.write_repository(run, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_exports_to_onnx_first_and_uploads(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    calls: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> str:
            calls.append((repository, options))
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, **options: Any) -> None:
            assert Path(options["folder_path"], "policy.onnx").is_file()
            calls.append(options["repo_id"])

    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "HfApi", Api)
    asked = ["export_student", "--student", str(run), "--format", "hub", "--episodes", "3", "--workers", "0", "--json"]
    assert main([*asked, "--push", "me/small", "--private", "true"]) == 0
    assert calls == [("me/small", {"private": True, "exist_ok": True}), "me/small"]
    printed = json.loads(capsys.readouterr().out)
    assert printed["url"] == "https://huggingface.co/me/small"
    assert printed["path"] == str(run / "exports" / "hub")
    assert main(asked) == 0  # again: the export is there, and the repository is replaced
    assert len(calls) == 2


def test_without_the_extras_it_says_what_is_missing(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export_student", "--student", str(run), "--format", "hub"]) == 0
    assert "without policy.onnx: the ONNX formats need onnxruntime" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["export_student", "--student", str(run), "--format", "hub", "--push", "me/small"]) == 2
    assert "push needs huggingface_hub: pip install 'policy-distill[hub]'" in capsys.readouterr().err


def test_wrong_requests_stop_before_any_work(run, capsys):
    pytest.importorskip("huggingface_hub")
    for options, message in (
        (["--format", "hub", "--push", "a/b/c"], "no USER/NAME of the Hub"),
        (["--format", "npz", "--push", "me/small"], "give --format hub beside them"),
        (["--format", "nothing"], "the formats are sb3, onnx"),
    ):
        assert main(["export_student", "--student", str(run), *options]) == 2
        assert message in capsys.readouterr().err
    assert not (run / "exports").exists()


def test_a_failed_upload_says_that_the_folder_is_written(tmp_path):
    class Api:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no network")

    api: Any = Api()
    with pytest.raises(Fault, match=r"is written, but not uploaded \(no network\): check the network and hf auth login"):
        hub.push(api, tmp_path, "me/small")
