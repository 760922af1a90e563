"""A training that is interrupted at any moment goes on, with what the last checkpoint holds; another request is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from policy_distill.commands.cli import main
from policy_distill.config import RequestError, StorageFault
from policy_distill.pipeline import state_file
from policy_distill.studies.train_teacher import training
from policy_distill.studies.train_teacher.checkpoint import Checkpoint, Progress
from policy_distill.studies.train_teacher.model_state import agent_of, described, restore_generators, restored
from policy_distill.studies.train_teacher.recipes import ALGORITHMS, TrainTeacherConfig, new_model, recipe_for
from policy_distill.studies.train_teacher.replay_file import ReplayFile
from policy_distill.studies.train_teacher.returns import evaluate_model
from policy_distill.studies.train_teacher.training import train_teacher
from policy_distill.teachers import Teacher
from tests.studies.train_teacher.test_recipes import SMALL, config


@pytest.fixture(autouse=True)
def at_every_rollout(monkeypatch):
    """Write a checkpoint before each rollout, however little time that leaves to the training."""
    monkeypatch.setattr(training, "SHARE_OF_TIME", 0)


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Raise an exception in the evaluation of number ``after``."""
    calls = []

    def evaluate(*arguments: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == after:
            raise error
        return evaluate_model(*arguments)

    monkeypatch.setattr(training, "evaluate_model", evaluate)


@pytest.mark.parametrize("normalize", [False, True])
def test_an_interrupted_training_goes_on_and_says_so(normalize, tmp_path, monkeypatch):
    request = config(tmp_path, hyperparams={**SMALL, "normalize": normalize})
    notes: list[str] = []
    with monkeypatch.context() as patch:
        stopping(patch, 15, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as stop:
            train_teacher(request)
    assert stop.value.__notes__ == [f"go on with: policy-distill train_teacher --resume {tmp_path / 'run'}"]
    assert not any((tmp_path / "agents" / "ppo").iterdir())
    agent = train_teacher(request, notes.append, resume=True)
    assert notes[0].startswith("resumed at 100 of 200 steps; environments begin new episodes")
    assert agent.steps == 200
    card = json.loads((agent.path / "card.json").read_text())
    assert card["resumed_at_env_steps"] == [100]
    assert "interrupted, and resumed at | environment steps 100" in (agent.path / "README.md").read_text()
    assert sum("of 200 steps: return" in line for line in notes) == 11, "ten evaluations of 100 steps, and one at the end"
    assert Teacher.load(agent.path).algo == "ppo"
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["mean"] == agent.mean


def test_the_best_agent_before_the_interruption_is_kept(tmp_path, monkeypatch):
    request = config(tmp_path)
    script = iter([5.0, 9.0, *[7.0] * 12])
    best: list[torch.Tensor] = []

    def scripted(model: Any, *_: Any) -> np.ndarray:
        value = next(script, None)
        if value is None:
            raise KeyboardInterrupt
        if value == 9:
            best.append(model.policy.action_net.weight.detach().clone())
        return np.array([value])

    monkeypatch.setattr(training, "evaluate_model", scripted)
    with pytest.raises(KeyboardInterrupt):
        train_teacher(request)
    monkeypatch.setattr(training, "evaluate_model", lambda *_: np.array([1.0, 2.0]))
    agent = train_teacher(request, resume=True)
    from stable_baselines3 import PPO

    assert torch.equal(PPO.load(agent.path / "CartPole-v1.zip", device="cpu").policy.state_dict()["action_net.weight"], best[0])
    assert json.loads((agent.path / "card.json").read_text())["kept_at_env_step"] == 20


KINDS: dict[str, dict[str, Any]] = {
    "a2c": {"hyperparams": {"n_steps": 10, "normalize": True}},
    "ars": {"env": "Pendulum-v1", "hyperparams": {"policy": "LinearPolicy", "n_delta": 2}, "n_timesteps": 900},
    "dqn": {"hyperparams": {"learning_starts": 10, "train_freq": 4, "gradient_steps": 1, "buffer_size": 130, "batch_size": 8}},
    "ppo_lstm": {"hyperparams": {"n_steps": 25, "batch_size": 50, "n_epochs": 1}},
    "ppo_mask": {"env": "SingleMachine-v0", "hyperparams": {"n_steps": 24, "batch_size": 48, "n_epochs": 1}},
    "qrdqn": {"hyperparams": {"learning_starts": 10, "train_freq": 4, "gradient_steps": 1, "buffer_size": 1000, "batch_size": 8}},
    "sac": {"env": "Pendulum-v1", "hyperparams": {"learning_starts": 10, "train_freq": 4, "buffer_size": 1000, "batch_size": 8}},
    "td3": {
        "env": "Pendulum-v1", "n_envs": 1,
        "hyperparams": {"learning_starts": 10, "train_freq": 4, "noise_type": "ornstein-uhlenbeck", "batch_size": 8},
    },
    "tqc": {"env": "Pendulum-v1", "hyperparams": {"learning_starts": 10, "train_freq": 4, "buffer_size": 1000, "batch_size": 8}},
    "trpo": {"hyperparams": {"n_steps": 32, "batch_size": 32}},
}  # fmt: skip


def request_for(algo: str, folder: Path) -> TrainTeacherConfig:
    if ALGORITHMS[algo] == "sb3_contrib":
        pytest.importorskip("sb3_contrib")
    return config(folder, **{"algo": algo, "validation_episodes": 1, "eval_episodes": 2, "eval_freq": 1000, **KINDS[algo]})


def whole(model: Any) -> dict[str, np.ndarray]:
    """Everything of a model that a checkpoint restores, as arrays."""
    arrays: dict[str, np.ndarray] = {}
    described({"parameters": model.get_parameters(), "agent": agent_of(model)}, "model", arrays)
    if (buffer := getattr(model, "replay_buffer", None)) is not None:
        held = buffer.size()
        arrays |= {name: value[:held] for name, value in vars(buffer).items() if isinstance(value, np.ndarray) and name != "timeouts"}
        arrays["place"] = np.array([buffer.pos, buffer.full])
    return arrays


@pytest.mark.parametrize("algo", KINDS)
def test_each_algorithm_comes_back_as_it_was(algo, tmp_path):
    """Weights, moments of the optimisers, statistics, counters, transitions and random numbers."""
    request = request_for(algo, tmp_path)
    recipe = recipe_for(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a batch that one environment does not fill
        trained, fresh = new_model(request, recipe, None), new_model(request, recipe, None)
    trained.learn(recipe.n_timesteps)
    tmp_path.joinpath("run").mkdir()
    checkpoint = Checkpoint(tmp_path / "run", request, recipe, trained)
    checkpoint.begin()
    checkpoint.write(Progress(next_at=7, best=agent_of(trained), resumed=[3]))
    expected = whole(trained), np.random.random(), torch.rand(1), trained.action_space.sample()  # noqa: NPY002
    assert not all(np.array_equal(expected[0][name], found) for name, found in whole(fresh).items())
    saved = Checkpoint(tmp_path / "run", request, recipe, fresh).read()
    restore_generators(fresh, saved.training)
    found = whole(fresh), np.random.random(), torch.rand(1), fresh.action_space.sample()  # noqa: NPY002
    assert found[0].keys() == expected[0].keys()
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, expected[0][name], err_msg=name)
    assert found[1:3] == expected[1:3]
    np.testing.assert_array_equal(found[3], expected[3])
    assert (saved.progress.next_at, saved.progress.resumed, fresh.num_timesteps) == (7, [3], trained.num_timesteps)
    assert not saved.changed


@pytest.mark.parametrize("algo", KINDS)
def test_each_algorithm_trains_on_to_the_end(algo, tmp_path, monkeypatch):
    request = request_for(algo, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with monkeypatch.context() as patch:
            stopping(patch, 12, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                train_teacher(request)
        agent = train_teacher(request, resume=True)
    assert agent.steps >= recipe_for(request).n_timesteps
    (resumed,) = json.loads((agent.path / "card.json").read_text())["resumed_at_env_steps"]
    assert 0 < resumed < agent.steps or algo == "ars"  # all of its episodes have 200 steps, of two environments


def test_checkpoints_and_evaluations_do_not_change_the_training(tmp_path, monkeypatch):
    """The weights are those of a training without either, which draws the same random numbers."""
    weights = []
    for share, eval_freq in ((0, 100), (1e9, 10)):
        monkeypatch.setattr(training, "SHARE_OF_TIME", share)
        folder = tmp_path / str(eval_freq)
        request = config(folder, eval_freq=eval_freq, validation_episodes=3 if share else 2)
        models: list[Any] = []

        def remembered(*arguments: Any, models: list[Any] = models) -> Any:
            models.append(new_model(*arguments))
            return models[0]

        monkeypatch.setattr(training, "new_model", remembered)
        monkeypatch.setattr(training, "restore_agent", lambda *_: None)
        train_teacher(request)
        weights.append(models[0].policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Buffer:
    """A replay buffer of numbers."""

    optimize_memory_usage = False

    def __init__(self, size: int) -> None:
        self.buffer_size, self.pos, self.full = size, 0, False
        self.observations: dict[str, np.ndarray] = {"b": np.zeros((size, 2, 3), np.uint8), "a": np.zeros((size, 2), np.float32)}
        self.dones, self.timeouts = np.zeros((size, 2), np.float32), np.zeros((size, 2), np.float32)

    def fill(self, total: int, start: int = 0) -> None:
        for number in range(start, total):
            place = number % self.buffer_size
            self.observations["b"][place], self.observations["a"][place], self.dones[place] = number % 251, number, number % 2
        self.pos, self.full = total % self.buffer_size, total >= self.buffer_size


@pytest.mark.parametrize("totals", [[0], [3], [3, 7], [10], [10, 20], [4, 14], [3, 27], [9, 11, 35, 36], [20, 25]])
def test_a_replay_buffer_is_read_as_it_was_wherever_it_is_overwritten(totals, tmp_path, monkeypatch):
    monkeypatch.setattr("policy_distill.studies.train_teacher.replay_file.BLOCK_BYTES", 60)
    buffer, before = Buffer(10), 0
    saved: dict[str, Any] = {}
    file = ReplayFile(tmp_path, buffer)
    for total in totals:
        buffer.fill(total, before)
        saved, before = file.append(total), total
        earlier = Buffer(10)
        ReplayFile(tmp_path, earlier).read(saved)
        file.remove_old()
    assert len(list(tmp_path.iterdir())) <= 2
    # what a later checkpoint appended before it was interrupted is not read, and is overwritten
    buffer.fill(before + 4, before)
    file.append(before + 4)
    buffer = Buffer(10)
    buffer.fill(before)
    read = Buffer(10)
    again = ReplayFile(tmp_path, read)
    again.read(saved)
    assert (read.pos, read.full) == (buffer.pos, buffer.full)
    for name in ("a", "b"):
        np.testing.assert_array_equal(read.observations[name], buffer.observations[name])
    np.testing.assert_array_equal(read.dones, buffer.dones)
    assert read.timeouts.sum() == (2 if before else 0), "the last transition does not go on"
    read.fill(before + 13, before)
    once_more, third = again.append(before + 13), Buffer(10)
    ReplayFile(tmp_path, third).read(once_more)
    np.testing.assert_array_equal(third.observations["a"], read.observations["a"])


def test_a_replay_buffer_that_was_damaged_is_not_read(tmp_path):
    buffer = Buffer(10)
    file = ReplayFile(tmp_path, buffer)
    buffer.fill(7)
    saved = file.append(7)
    content = bytearray((tmp_path / "replay0").read_bytes())
    content[9] ^= 1
    (tmp_path / "replay0").write_bytes(content)
    with pytest.raises(ValueError, match="replay0 does not hold what was written"):
        ReplayFile(tmp_path, Buffer(10)).read(saved)
    (tmp_path / "replay0").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="cannot reshape"):
        ReplayFile(tmp_path, Buffer(10)).read(saved)


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> TrainTeacherConfig:
    request = config(folder, **changes)
    with monkeypatch.context() as patch:
        stopping(patch, 12, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train_teacher(request)
    return request


def test_another_request_is_refused_with_the_difference(tmp_path, monkeypatch):
    request = interrupted(tmp_path, monkeypatch)
    folder = tmp_path / "run" / "checkpoint"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change, line in (
        ({"seed": 3}, "seed is 3, it was 0"),
        ({"n_timesteps": 300}, "n_timesteps is 300, it was 200"),
        ({"hyperparams": {**SMALL, "n_epochs": 3}}, "hyperparams.n_epochs is 3, it was 2"),
        ({"env_kwargs": {"sutton_barto_reward": True}}, "env_kwargs.sutton_barto_reward is True, it was None"),
    ):
        with pytest.raises(RequestError, match=f"cannot be resumed with another request: {line}.*remove the folder checkpoint") as refusal:
            train_teacher(dataclasses.replace(request, **change), resume=True)
        assert not hasattr(refusal.value, "__notes__")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(RequestError, match=r"holds a training that was interrupted: go on with: .* or remove the folder checkpoint"):
        train_teacher(request)
    train_teacher(dataclasses.replace(request, output=str(tmp_path / "elsewhere")), resume=True)
    with pytest.raises(RequestError, match=r"state\.safetensors cannot be read"):
        train_teacher(request, resume=True)


def test_other_versions_are_noted(tmp_path, monkeypatch):
    request = interrupted(tmp_path, monkeypatch)
    notes: list[str] = []
    monkeypatch.setattr("policy_distill.studies.train_teacher.checkpoint.versions", lambda: {"torch": "9"})
    train_teacher(request, notes.append, resume=True)
    assert any(line.startswith("note: torch is 9, it was 2") for line in notes)


@pytest.mark.parametrize(
    "change",
    [
        lambda data, arrays: arrays.update({"state/agent/policy/action_net.weight": np.zeros((9, 9), np.float32)}),
        lambda data, arrays: data["state"].update(mapping=[["agent", {"os.system": "true"}]]),
        lambda data, arrays: data.update(state=None),
        lambda data, arrays: arrays.pop("state/training/generators/torch"),
    ],
)
def test_a_checkpoint_that_was_forged_is_refused(change, tmp_path, monkeypatch):
    request = interrupted(tmp_path, monkeypatch)
    path = tmp_path / "run" / "checkpoint" / "state.safetensors"
    data, arrays = state_file.read_state(path)
    change(data, arrays)
    state_file.write_state(path, data, arrays)
    with pytest.raises(RequestError, match=r"state.safetensors cannot be read \(.*remove the folder checkpoint to begin the run again"):
        train_teacher(request, resume=True)


def test_a_disk_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    request = config(tmp_path)
    write, calls = state_file.save_file, []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, os.strerror(28))
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(state_file, "save_file", failing)
        with pytest.raises(StorageFault, match="No space left on device") as fault:
            train_teacher(request)
    assert fault.value.__notes__[0].startswith("once the cause is gone, go on with: policy-distill train_teacher --resume")
    agent = train_teacher(request, resume=True)
    assert json.loads((agent.path / "card.json").read_text())["resumed_at_env_steps"] == [0]


def test_a_finished_training_is_not_run_again(tmp_path, monkeypatch, capsys):
    agent = train_teacher(config(tmp_path))
    files = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.setattr(training, "new_model", None)
    assert main(["train_teacher", "--resume", str(tmp_path / "run"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["path"] == str(agent.path)
    assert "is finished, and is not run again" in printed.err
    assert sorted(path for path in tmp_path.rglob("*")) == files


def test_code_must_be_typed_again(tmp_path, capsys):
    run = tmp_path / "run" / "checkpoint"
    run.mkdir(parents=True)
    settings = dataclasses.asdict(TrainTeacherConfig("ppo", "CartPole-v1", extractor="mine.py:Extractor"))
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train_teacher", "--resume", str(run.parent)]) == 2
    assert "--extractor mine.py:Extractor" in capsys.readouterr().err
    assert main(["train_teacher", "--resume", str(tmp_path / "nothing")]) == 2
    assert "holds no run that was interrupted" in capsys.readouterr().err


def test_generators_of_values_come_back():
    arrays: dict[str, np.ndarray] = {}
    value = {"a": [1, (2.5, None)], 3: {"tensor": torch.arange(3)}, "zero": torch.tensor(7.0), "big": 2**100, "number": np.float64(3)}
    found = restored(json.loads(json.dumps(described(value, "value", arrays))), arrays)
    assert torch.equal(found[3].pop("tensor"), torch.arange(3))
    assert found.pop("zero").shape == ()
    assert found == {"a": [1, (2.5, None)], 3: {}, "big": 2**100, "number": 3.0}
    with pytest.raises(TypeError, match="value/x is a object, which is not saved"):
        described({"x": object()}, "value", arrays)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_command_that_is_killed_goes_on(number, tmp_path):
    """And says how, unless it could not."""
    options = ["--algo=ppo", "--env=CartPole-v1", "--n_envs=2", "--n_timesteps=4000", "--eval_episodes=4", "--validation_episodes=2"]
    options += [
        f"--output={tmp_path / 'agents'}",
        f"--run_folder={tmp_path / 'run'}",
        "--tensorboard=false",
        f"--hyperparams={json.dumps(SMALL)}",
    ]
    script = [sys.executable, str(Path(__file__).parents[3] / "scripts" / "train_teacher.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    state = tmp_path / "run" / "checkpoint" / "state.safetensors"
    with subprocess.Popen([*script, *options], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        until = time.monotonic() + 60
        while not state.exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}[number]
    if number != signal.SIGKILL:
        assert errors.splitlines()[-1].endswith(f"; go on with: policy-distill train_teacher --resume {tmp_path / 'run'}")
    assert main(["train_teacher", "--resume", str(tmp_path / "run"), "--json"]) == 0
    (card,) = (tmp_path / "agents").rglob("card.json")
    assert json.loads(card.read_text())["env_steps"] == 4000
