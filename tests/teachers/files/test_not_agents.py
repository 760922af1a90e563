"""Files and folders that are taken for agents: one line says what they are and what to do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.not_agents import holds_agent
from tests.teachers.conftest import build


def unpacked(agent: Path, target: Path) -> None:
    zipfile.ZipFile(agent).extractall(target)


def zipped(members: dict[str, bytes]) -> Callable[[Path, Path], None]:
    def write(agent: Path, target: Path) -> None:
        with zipfile.ZipFile(target, "w") as file:
            for name, content in members.items():
                file.writestr(name, content or agent.read_bytes())

    return write


def policy_saved(agent: Path, target: Path) -> None:
    from stable_baselines3 import PPO

    PPO.load(agent, device="cpu").policy.save(str(target))


def weights_saved(agent: Path, target: Path) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), target)


def traced(agent: Path, target: Path) -> None:
    torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save(target)


SB2 = {"data": json.dumps({"gamma": 0.99}).encode(), "parameters": b"x", "parameter_list": b"[]"}
CASES = [
    ("unpacked", unpacked, r"is an agent's zip, unpacked; pack it again: \(cd .*unpacked && zip -r \.\./unpacked\.zip \.\)"),
    ("again.zip", zipped({"agent.zip": b""}), r"is a zip that holds agent\.zip; unpack it"),
    ("folder.zip", zipped({"agent/data": b"{}", "agent/policy.pth": b"x"}), r"in the folder agent/; pack them without it"),
    ("sb2.zip", zipped(SB2), r"is an agent of Stable-Baselines 2 .*train it again"),
    ("train_eval_metrics.zip", zipped({"evaluations.npz": b"x", "0.monitor.csv": b"x"}), r"logs of training, not an agent"),
    ("policy.zip", policy_saved, r"was written by policy\.save\(\).*load_state_dict"),
    ("policy.pt", policy_saved, r"was written by policy\.save\(\)"),
    ("weights.pth", weights_saved, r"PyTorch weights \(a state dict\), not an agent"),
    ("script.pt", traced, r"is a TorchScript module"),
    ("empty.zip", lambda _, target: target.write_bytes(b""), r"is empty; copy or download it again"),
    ("cut.zip", lambda agent, target: target.write_bytes(agent.read_bytes()[:200]), r"is a damaged or truncated zip"),
    ("lfs.zip", lambda _, target: target.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), r"pointer of Git LFS.*git lfs pull"),
    ("agent.pkl", lambda _, target: target.write_bytes(b"\x80\x04N."), r"is a Python pickle"),
    ("agent.txt", lambda _, target: target.write_bytes(b"hello"), r"is no zip; name a file saved by agent\.save\(\)"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("name", "make", "match"), CASES, ids=[case[0] for case in CASES])
def test_what_it_is_is_said_in_one_line(name, make, match, save, tmp_path):
    agent = save(build("PPO"))
    target = tmp_path / "there" / name
    target.parent.mkdir()
    make(agent, target)
    with pytest.raises(RequestError, match=match) as caught:
        Teacher.load(target)
    assert "\n" not in str(caught.value)


def test_a_folder_without_agents_names_those_below_it(save, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    save(build("PPO")).rename(tmp_path / "runs" / "one" / "agent.zip")
    with pytest.raises(RequestError, match=r"without an agent's \.zip \(agents in it: one/agent\.zip\)"):
        Teacher.load(tmp_path / "runs")


def test_a_zip_with_an_endless_directory_is_passed_over(tmp_path, monkeypatch):
    """An agent beside it is found; the directory of the other one is not read into memory."""
    monkeypatch.setattr("policy_distill.support.untrusted._Zip.limit", 1000)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        for index in range(100):
            other.writestr(f"member {index}", b"")
    assert not holds_agent(tmp_path / "other.zip")
    build("PPO").save(tmp_path / "agent.zip")
    assert holds_agent(tmp_path / "agent.zip")
