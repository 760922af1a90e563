"""Whole runs, tiny ones: what they leave behind, what they do not touch, and that they can be repeated."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policy_distill.commands.cli import main
from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    LossConfig,
    PolishConfig,
    RequestError,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
)
from policy_distill.evaluation.disagreements import read_worst_states
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.distill import STAGES, DistillResult, distill
from policy_distill.pipeline.imitation import choose_round
from policy_distill.pipeline.polish import polish
from policy_distill.pipeline.self_distillation import self_distill
from policy_distill.pipeline.state import State
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset
from policy_distill.training.trainer import Trainer
from tests.small_worlds import (
    BANDIT,
    PUSH,
    WALK,
    Push,
    bandit_teacher,
    push_teacher,
    random_observations,
    random_student,
    walk_expert,
    walk_teacher,
)

GRADIENT_STEPS, ENV_STEPS = 602, 1202
CONTRACT = {
    "version": str,
    "seed": int,
    "device": str,
    "env": str,
    "teacher": {"path": object, "algo": str, "params": int, "return_mean": float, "return_std": float},
    "student": {"hidden_sizes": list, "params": int, "bytes": int, "multiply_adds": int, "return_mean": float, "return_std": float},
    "random": {"return_mean": float},
    "compression": float,
    "retention": {"estimate": float, "low": float, "high": float, "confidence": float, "episodes": int},
    "agreement": float,
    "env_steps": int,
    "evaluation_env_steps": int,
    "reused_episodes": int,
    "gradient_steps": int,
    "kept": str,
    "chosen_round": int,
    "rounds": list,
    "self_distillation": list,
    "polish": object,
    "seconds": {"collect": float, "train": float, "polish": float, "evaluate": float, "total": float, "decision": float},
}


def tiny(output: Path, env: str = WALK.id, **changes: Any) -> DistillConfig:
    config = DistillConfig(
        env=env,
        output=str(output),
        device="cpu",
        workers=0,
        student=StudentConfig(hidden_sizes=(16, 16)),
        collect=CollectConfig(env_steps=ENV_STEPS, rounds=4, num_envs=4),
        train=TrainConfig(gradient_steps=GRADIENT_STEPS, batch_size=64, learning_rate=0.01, average_decay=0.98, members=1),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=30, validation_episodes=8, finalist_episodes=40),
    )
    return dataclasses.replace(config, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "student.safetensors")


def assert_same_student(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def expert_zip(tmp_path_factory) -> Path:
    """A Stable-Baselines3 zip that walks to the target."""
    return save_ppo(walk_expert(), tmp_path_factory.mktemp("agents") / "ppo.zip")


@pytest.fixture(scope="module")
def run(tmp_path_factory, expert_zip) -> DistillResult:
    return distill(tiny(tmp_path_factory.mktemp("runs") / "walk", teacher=str(expert_zip)))


# What is left behind.


def test_the_folder_holds_what_was_promised(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "result.json",
        "report.md",
        "report.html",
        "student.zip",
        "student/student.json",
        "student/student.safetensors",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not [name for name in names if Path(name).name.startswith(".")]


def test_the_result_keeps_its_contract(run):
    result = json.loads((run.folder / "result.json").read_text(), parse_constant=pytest.fail)

    def check(found: dict[str, Any], promised: dict[str, Any], where: str) -> None:
        for key, kind in promised.items():
            assert key in found, where + key
            if isinstance(kind, dict):
                check(found[key], kind, f"{where}{key}.")
            else:
                assert isinstance(found[key], kind), (where + key, found[key])

    check(result, CONTRACT, "")
    assert result["env"] == WALK.id
    assert result["student"]["hidden_sizes"] == [16, 16]
    # 2 -> 16 -> 16 -> 3: 48 + 272 + 51 = 371; 2 -> 32 -> 32 -> 3: 96 + 1056 + 99 = 1251
    assert result["student"]["params"] == 371
    assert result["teacher"]["params"] == 1251
    assert result["compression"] == pytest.approx(1251 / 371)
    assert result["seconds"]["total"] >= sum(result["seconds"][stage] for stage in ("collect", "train", "polish", "evaluate"))
    assert result["polish"] is None
    assert result["seconds"]["polish"] == 0.0


def test_the_three_counters_are_exact(run):
    # 1202 steps over 4 environments are 300 each; four rounds of 75 steps; 602 gradient steps are 150, 151, 150, 151
    rounds = run.summary["rounds"]
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert [record["env_steps"] for record in rounds] == [300, 600, 900, 1200]
    assert [record["gradient_steps"] for record in rounds] == [150, 301, 451, 602]
    assert (run.summary["env_steps"], run.summary["gradient_steps"]) == (1200, 602)
    assert [record["teacher_action_prob"] for record in rounds] == [1.0, 0.5, 0.25, 0.125]


def test_evaluation_s_environment_steps_are_reported_apart(run):
    on_the_figure = sum(episodes.env_steps for episodes in (run.student_episodes, run.teacher_episodes, run.random_episodes))
    assert run.summary["evaluation_env_steps"] > on_the_figure


def test_the_returns_can_be_measured_again(run):
    seeds = evaluation_seeds("final", 30)
    for found, policy in ((run.student_episodes, run.student), (run.teacher_episodes, walk_teacher()), (run.random_episodes, None)):
        again = evaluate(policy, WALK, seeds, num_envs=7)
        np.testing.assert_array_equal(found.returns, again.returns)
        np.testing.assert_array_equal(found.seeds, seeds)
    assert run.summary["returns"]["student"] == run.student_episodes.returns.tolist()


def test_the_saved_student_is_the_one_returned(run):
    again = Student.load(run.folder / "student")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in run.student.state_dict().items())
    assert json.loads((run.folder / "student" / "student.json").read_text())["environment"]["id"] == WALK.id


def test_the_curves_have_a_point_for_each_round(run):
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} == {"collect", "train", "train_steps", "eval", "final", "time"}
    assert [event.step for event in events.Scalars("train/forward_kl_nats")] == [300, 600, 900, 1200]
    assert [event.step for event in events.Scalars("eval/validation_return_mean")] == [300, 600, 900, 1200]
    assert events.Scalars("train/learning_rate")[-1].value == 0.0
    within = [event.step for event in events.Scalars("train_steps/forward_kl_nats")]
    assert within == [event.step for event in events.Scalars("train_steps/learning_rate")]
    per_round = [event.value for event in events.Scalars("train/gradient_steps")]
    assert set(per_round) < set(within)  # each round's end, and points between
    assert len(within) > 2 * len(per_round)
    assert within == sorted(within)


def test_the_report_has_the_figures_of_the_result(run):
    report = (run.folder / "report.md").read_text()
    kept = run.retention
    assert f"{kept.estimate:.3f} [{kept.low:.3f}, {kept.high:.3f}]" in report
    assert report.count("**chosen**") == 1
    assert "## Polish" not in report


def test_the_round_that_is_kept_is_the_best_finalist(run):
    records = {record["round"]: (record["finalist_episodes"], record["finalist_return_mean"]) for record in run.summary["rounds"]}
    finalists = {number: found for number, found in records.items() if found[0] is not None}
    assert sorted(episodes for episodes, _ in finalists.values()) == [18, 28, 48, 48]  # of four the best three play on, then two
    chosen = run.summary["chosen_round"]
    assert finalists[chosen] == max(finalists.values())
    assert run.summary["kept"] == f"round {chosen + 1}"
    validation = evaluate(run.student, WALK, evaluation_seeds("validation", 48))
    assert finalists[chosen][1] == pytest.approx(validation.returns.mean())


@pytest.mark.parametrize(("enough", "rounds"), [(0.01, 5), (2.0, 7)])
def test_rounds_end_early_where_three_in_a_row_keep_enough(enough, rounds, expert_zip, tmp_path):
    """They are measured while the next one trains: after the third is known a fifth is the last, of as many gradient steps as any."""
    config = tiny(tmp_path, teacher=str(expert_zip))
    collect = CollectConfig(env_steps=70 * 4, rounds=7, num_envs=4, enough=enough)
    found = distill(dataclasses.replace(config, collect=collect)).summary
    assert [record["env_steps"] for record in found["rounds"]] == [40 * (index + 1) for index in range(rounds)]
    assert found["gradient_steps"] == found["rounds"][-1]["gradient_steps"] == GRADIENT_STEPS * rounds // 7
    assert found["rounds"][0]["gradient_steps"] == GRADIENT_STEPS // 7
    assert found["returns"]["seeds"] == evaluation_seeds("final", 30)
    assert len(found["returns"]["teacher"]) == len(found["returns"]["random"]) == 30


# What is learnt.


def test_the_known_best_policy_is_reached(run):
    np.testing.assert_array_equal(run.teacher_episodes.returns, evaluate(walk_teacher(), WALK, evaluation_seeds("final", 30)).returns)
    assert run.retention.estimate > 0.95
    assert run.summary["agreement"] > 0.95


def test_the_known_best_continuous_policy_is_reached_on_bounds_that_are_not_symmetric(tmp_path):
    result = distill(tiny(tmp_path, PUSH.id), teacher=push_teacher())
    assert result.retention.estimate > 0.97
    actions = result.student.act(random_observations(Push.observation_space, 200))
    assert (actions[:, 0] == 6).any()
    assert (actions[:, 0] == -2).any()


def test_a_discrete_observation_is_distilled_exactly(tmp_path):
    config = tiny(tmp_path, BANDIT.id, student=StudentConfig(hidden_sizes=()))
    result = distill(config, teacher=bandit_teacher())
    assert result.student_episodes.returns.tolist() == [1.0] * 30
    assert result.retention.estimate == result.retention.low == 1.0


def test_without_the_teacher_s_labels_nothing_is_learnt(tmp_path):
    """The optimum is not reached by luck: a teacher that always walks left makes a student that does."""
    teacher = Teacher.from_callable(
        lambda seen: np.zeros(len(seen), np.int64), walk_teacher().observation_space, walk_teacher().action_space
    )
    result = distill(tiny(tmp_path), teacher=teacher)
    assert result.student_episodes.returns.mean() < -6
    assert result.summary["agreement"] == 1.0


# What an earlier student did not know.


def hasty(output: Path, teacher: Path, **changes: Any) -> DistillConfig:
    """Too few environment steps to see more than a handful of states."""
    collect = CollectConfig(**{"env_steps": 8, "rounds": 2, "num_envs": 4, **changes})
    config = tiny(output, teacher=str(teacher), collect=collect)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, holdout=0.5))


def test_states_in_which_a_student_parted_teach_the_next_one(expert_zip, tmp_path, monkeypatch, capsys):
    """Compared on seeds of their own, labelled once, trained on from the first round on, never held out, no environment steps."""
    earlier = random_student(walk_teacher().observation_space, walk_teacher().action_space)
    earlier.save(tmp_path / "earlier", extra={"environment": WALK.to_dict(), "teacher": {"path": str(expert_zip)}})
    file = tmp_path / "states.npz"
    assert main(["compare_policies", "--policy", str(tmp_path / "earlier"), "--episodes", "60", "--output", str(file)]) == 0
    wrong, _ = read_worst_states(file, walk_teacher().observation_space, 10_000)
    datasets: list[Dataset] = []

    def remember(state: State, services: Services) -> State:
        datasets.append(state.dataset)
        return choose_round(state, services)

    monkeypatch.setitem(STAGES, "choice", remember)
    config = hasty(tmp_path / "second", expert_zip, extra_states=str(file))
    second = distill(config, display=Display())
    (dataset,) = datasets
    observations, targets = dataset.spread(10_000)
    # 4 environments take 1 step in each of 2 rounds, 2 of the first 4 episodes are held out; the extra states lie between the rounds
    extra = slice(2, 2 + len(wrong))
    assert len(dataset) == 8 + len(wrong)
    np.testing.assert_array_equal(observations[extra].numpy(), wrong)
    np.testing.assert_array_equal(targets.actions[extra].numpy(), Teacher.load(expert_zip).act(wrong))
    assert second.summary["extra_states"] == len(wrong) > 20
    assert (second.summary["env_steps"], second.summary["rounds"][0]["env_steps"]) == (8, 4)
    notice = f"{len(wrong)} states of {file} join the first round's data; they are no environment steps"
    assert notice in second.summary["notices"]
    assert notice in " ".join(capsys.readouterr().err.split())
    assert yaml.safe_load((second.folder / "config.yaml").read_text())["collect"]["extra_states"] == str(file)
    assert second.retention.estimate > distill(hasty(tmp_path / "first", expert_zip)).retention.estimate + 0.05
    assert not set(evaluation_seeds("comparison", 60)) & {*second.student_episodes.seeds, *evaluation_seeds("certificate", 2000)}

    # With a window they are forgotten with the first round's data.
    distill(dataclasses.replace(config, output=str(tmp_path / "third"), collect=dataclasses.replace(config.collect, window=1)))
    assert datasets[-1].num_drawn_from <= 4
    assert len(datasets[-1]) == len(dataset)


# What reward adds.


POLISH = PolishConfig(below=1e9, env_steps=2000, num_envs=4, num_steps=64, batch_size=64, epochs=2, snapshots=2, learning_rate=1e-2)


def hardly_imitating(output: Path, **changes: Any) -> DistillConfig:
    """So few and so short gradient steps that hardly anything is learnt before the reward comes in."""
    return tiny(output, polish=POLISH, train=TrainConfig(gradient_steps=4, batch_size=8, learning_rate=1e-4), **changes)


@pytest.fixture(scope="module")
def polished(tmp_path_factory, expert_zip) -> tuple[DistillResult, State]:
    """A run whose student was trained on by reward, and its state."""
    stages: list[State] = []

    def remember(state: State, services: Services) -> State:
        stages.append(polish(state, services))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "polish", remember)
        result = distill(hardly_imitating(tmp_path_factory.mktemp("runs") / "polished", teacher=str(expert_zip)))
    return result, stages[0]


def test_reward_goes_on_where_imitation_fell_short(polished):
    result, state = polished
    found = json.loads((result.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert found["polish"]["records"] == json.loads(json.dumps([look.summary() for look in state.records_of("polish")]))
    # 2000 steps are eight rollouts of 256; the first look is due at 1100, after a tenth for the critic and half of the rest
    assert [record["env_steps"] for record in found["polish"]["records"]] == [1280, 2048]
    assert found["polish"]["start_retention"] < 0.5
    chosen = found["polish"]["chosen"]
    best = found["polish"]["records"][chosen]
    assert found["kept"] == f"polish, {best['env_steps']:,} steps"
    assert best["finalist_return_mean"] == pytest.approx(evaluate(result.student, WALK, evaluation_seeds("validation", 48)).returns.mean())
    assert found["retention"]["estimate"] > found["polish"]["start_retention"] + 0.1
    assert (found["env_steps"], found["rounds"][-1]["env_steps"]) == (1200 + 2048, 1200)
    assert found["seconds"]["polish"] > 0


def test_the_polished_student_is_the_one_that_is_saved_and_exported_with_its_critic(polished):
    result, state = polished
    assert result.student is state.kept[-1].student
    assert state.critic is not None
    saved = Student.load(result.folder / "student")
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in result.student.state_dict().items())
    model = PPO.load(result.folder / "student.zip", device="cpu")
    observations = random_observations(result.student.observation_space, 300)
    actions, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, result.student.act(observations))
    assert len(np.unique(actions)) > 1
    hidden = (torch.as_tensor(observations) - saved.mean) / saved.scale
    *inner, last = state.critic
    for layer in inner:
        hidden = torch.relu(layer(hidden))
    policy: Any = model.policy
    with torch.no_grad():
        values = policy.predict_values(torch.as_tensor(observations))
        torch.testing.assert_close(values, last(hidden), rtol=1e-4, atol=1e-4)
    assert values.std() > 0.01


def test_curves_and_report_go_on_with_the_polish(polished):
    result, _ = polished
    events = EventAccumulator(str(result.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("polish/train_return_mean")] == [2480, 3248]
    assert [event.step for event in events.Scalars("eval/validation_return_mean")] == [300, 600, 900, 1200, 2480, 3248]
    report = (result.folder / "report.md").read_text()
    assert "## Polish" in report
    assert report.count("**chosen**") == 2  # a round, and a look on the way
    assert f"| student's origin | {result.summary['kept']} |" in report


def test_a_student_that_reward_does_not_improve_is_exported_without_a_critic(expert_zip, tmp_path):
    config = tiny(tmp_path, teacher=str(expert_zip), polish=dataclasses.replace(POLISH, env_steps=256, snapshots=1, critic_warmup=0.9))
    result = distill(config)
    assert result.summary["polish"]["chosen"] is None
    assert result.summary["kept"] == f"round {result.summary['chosen_round'] + 1}"
    policy: Any = PPO.load(tmp_path / "student.zip", device="cpu").policy
    assert len(policy.mlp_extractor.value_net) == 0


@pytest.mark.parametrize("workers", [2])
def test_the_same_seed_makes_the_same_polished_student_however_many_workers(workers, polished, expert_zip, tmp_path):
    torch.manual_seed(99)
    result, _ = polished
    distill(hardly_imitating(tmp_path, teacher=str(expert_zip), workers=workers))
    assert_same_student(result.folder, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["polish"] == result.summary["polish"]


# What is not touched, and what can be repeated.


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_makes_the_same_student_however_many_workers(workers, run, expert_zip, tmp_path):
    again = distill(tiny(tmp_path, teacher=str(expert_zip), workers=workers))
    assert_same_student(run.folder, tmp_path)
    np.testing.assert_array_equal(again.student_episodes.returns, run.student_episodes.returns)
    np.testing.assert_array_equal(again.random_episodes.returns, run.random_episodes.returns)
    assert again.retention == run.retention
    assert again.summary["agreement"] == pytest.approx(run.summary["agreement"])
    for one, other in zip(again.summary["rounds"], run.summary["rounds"], strict=True):
        assert one == other


def still_mapped(folder: Path) -> bool:
    """Whether a file in the folder, named or not, is part of this process's memory."""
    gc.collect()
    return str(folder) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("env", "teacher"), [(WALK, walk_teacher), (PUSH, push_teacher), (BANDIT, bandit_teacher)])
def test_a_dataset_on_the_disk_makes_the_same_student_and_is_gone_with_the_run(env, teacher, tmp_path, monkeypatch):
    """Bit for bit, with a window, generations, and rounds and rows that come in several blocks."""
    for module in ("training.dataset", "rollouts.workers"):
        monkeypatch.setattr(f"policy_distill.{module}.BLOCK_BYTES", 1000)
    mapped: list[bool] = []

    def look(state: State, services: Services) -> State:
        if not state.records_of("generation"):
            mapped.append(still_mapped(tmp_path))
        return self_distill(state, services)

    monkeypatch.setitem(STAGES, "self_distillation", look)
    found = []
    for storage in ("memory", "disk"):
        collect = CollectConfig(env_steps=ENV_STEPS, rounds=4, num_envs=4, window=3, epsilon=0.1, storage=storage)
        changes = {"collect": collect, "self_distill": SelfDistillConfig(generations=2, gradient_steps=100)}
        found.append(distill(tiny(tmp_path / storage, env.id, **changes), teacher=teacher()))
        assert not still_mapped(tmp_path)
    memory, disk = found
    assert mapped == [False, True]
    assert_same_student(memory.folder, disk.folder)
    assert memory.summary["rounds"] == disk.summary["rounds"]
    assert len(memory.summary["self_distillation"]) > 0
    assert memory.summary["self_distillation"] == disk.summary["self_distillation"]
    np.testing.assert_array_equal(memory.student_episodes.returns, disk.student_episodes.returns)
    named = [sorted(path.name for path in result.folder.rglob("*") if "tfevents" not in path.name) for result in found]
    assert named[0] == named[1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_run_that_fails_leaves_its_dataset_in_the_checkpoint_alone(tmp_path, monkeypatch):
    mapped: list[bool] = []

    def fail(*_: Any) -> None:
        mapped.append(still_mapped(tmp_path))
        raise ZeroDivisionError

    monkeypatch.setitem(STAGES, "self_distillation", fail)
    collect = CollectConfig(env_steps=ENV_STEPS, rounds=4, num_envs=4, storage="disk")
    with pytest.raises(ZeroDivisionError) as caught:
        distill(tiny(tmp_path, collect=collect), teacher=walk_teacher())
    assert mapped == [True]
    del caught
    assert not still_mapped(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "config.yaml", "student", "tensorboard"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["config.yaml", "rows", "state.safetensors"]


def test_the_global_random_state_decides_nothing_and_the_seed_does(run, expert_zip, tmp_path):
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state must not matter)
    distill(tiny(tmp_path / "same", teacher=str(expert_zip)))
    assert_same_student(run.folder, tmp_path / "same")
    distill(tiny(tmp_path / "other", teacher=str(expert_zip), seed=1))
    assert not torch.equal(weights(run.folder)["network.0.weight"], weights(tmp_path / "other")["network.0.weight"])


def test_the_written_configuration_runs_again_to_the_same_student(run, tmp_path):
    from policy_distill.commands.cli import main

    written = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert set(written) == {field.name for field in dataclasses.fields(DistillConfig)}
    assert main(["distill_policy", "--config", str(run.folder / "config.yaml"), "--output", str(tmp_path), "--json"]) == 0
    assert_same_student(run.folder, tmp_path)


def test_a_width_chosen_by_compression_is_written_so_that_it_runs_again(expert_zip, tmp_path):
    result = distill(tiny(tmp_path, teacher=str(expert_zip), student=StudentConfig(compression=5)))
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["student"]
    assert written["hidden_sizes"] == result.summary["student"]["hidden_sizes"]
    assert written["compression"] is None
    assert result.summary["compression"] >= 5


def test_the_teacher_is_bitwise_unchanged_and_without_gradients(expert_zip, tmp_path):
    teacher = Teacher.load(expert_zip)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distill(tiny(tmp_path), teacher=teacher)
    assert before.keys() == teacher.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not teacher.training


def test_held_out_episodes_are_never_trained_on(expert_zip, tmp_path, monkeypatch):
    """What is drawn is compared with what was held out, by where it lies."""
    drawn: set[int] = set()
    datasets: list[Dataset] = []
    gather, run_steps = Dataset._gather, Trainer.run

    def spy(self: Dataset, part: slice, index: torch.Tensor, *rest: Any) -> Any:
        if self._in_training:  # type: ignore[attr-defined]
            drawn.update((part.start + index.flatten()).tolist())
        return gather(self, part, index, *rest)

    def run(self: Trainer, dataset: Dataset, num_steps: int, report: Any = None) -> Any:
        datasets[:] = [dataset]
        dataset._in_training = True  # type: ignore[attr-defined]
        try:
            return run_steps(self, dataset, num_steps, report)
        finally:
            dataset._in_training = False  # type: ignore[attr-defined]

    monkeypatch.setattr(Dataset, "_in_training", False, raising=False)
    monkeypatch.setattr(Dataset, "_gather", spy)
    monkeypatch.setattr(Trainer, "run", run)
    config = tiny(tmp_path, teacher=str(expert_zip))
    distill(dataclasses.replace(config, train=dataclasses.replace(config.train, holdout=0.25)))
    (dataset,) = datasets
    held = set(range(dataset.capacity - dataset.num_held_out, dataset.capacity))
    assert 0.1 < len(held) / len(dataset) < 0.4
    assert len(drawn) > 0.7 * dataset.num_train
    assert not held & drawn


def test_with_a_window_the_last_rounds_alone_are_trained_on(tmp_path, monkeypatch):
    seen: list[tuple[int, int]] = []
    run_steps = Trainer.run

    def run(self: Trainer, dataset: Dataset, num_steps: int, report: Any = None) -> Any:
        seen.append((dataset.num_train, dataset.num_drawn_from))
        return run_steps(self, dataset, num_steps, report)

    monkeypatch.setattr(Trainer, "run", run)
    distill(tiny(tmp_path, collect=CollectConfig(env_steps=ENV_STEPS, rounds=4, num_envs=4, window=2)), teacher=walk_teacher())
    first, second, third, fourth = (rows for rows, _ in seen)
    assert [drawn for _, drawn in seen] == [first, second, third - first, fourth - second]


def test_torch_threads_are_given_back(expert_zip, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        distill(tiny(tmp_path, teacher=str(expert_zip)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# The exported policy.

FOREIGN = """
import sys
sys.modules["policy_distill"] = None
import numpy as np
from stable_baselines3 import PPO
model = PPO.load("student.zip", device="cpu")
np.save("actions.npy", model.predict(np.load("observations.npy"), deterministic=True)[0])
assert not [name for name, module in sys.modules.items() if name.startswith("policy_distill") and module is not None]
"""


def test_the_exported_policy_acts_like_the_student_where_policy_distill_is_not(run, tmp_path):
    (tmp_path / "student.zip").write_bytes((run.folder / "student.zip").read_bytes())
    observations = random_observations(run.student.observation_space, 300)
    np.save(tmp_path / "observations.npy", observations)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", FOREIGN], cwd=tmp_path, env=environment, check=True, timeout=120)
    actions = np.load(tmp_path / "actions.npy")
    assert len(np.unique(actions)) > 1
    np.testing.assert_array_equal(actions, run.student.act(observations))


def test_a_student_can_be_a_teacher(run, tmp_path):
    teacher = Teacher.from_sb3(PPO.load(run.folder / "student.zip", device="cpu"))
    config = tiny(tmp_path, student=StudentConfig(hidden_sizes=(12, 12)))
    assert distill(config, teacher=teacher).retention.estimate > 0.9


# Requests that cannot be carried out.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "CartPole-v1"}, "observations are 2 numbers, those of CartPole-v1 are 4 numbers"),
        ({"env": None}, "give --env"),
        ({"env": "Wlak-v0"}, "neither an entry of envs/ nor a registered"),
        ({"loss": LossConfig(kind="regression")}, "use 'kl'"),
        ({"device": "abacus"}, "device is 'abacus'; it must be auto, cpu or cuda"),
        ({"output": "/proc/nowhere"}, "cannot be written"),
        ({"student": StudentConfig(compression=3)}, "give student.hidden_sizes"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(RequestError, match=message) as caught:
        distill(dataclasses.replace(tiny(tmp_path / "run"), **changes), teacher=walk_teacher())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.yaml"))


def test_without_a_teacher_the_request_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no teacher was named"):
        distill(tiny(tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize("teacher", [walk_teacher, push_teacher])
def test_a_run_on_the_gpu_ends_where_one_on_the_cpu_does(teacher, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    env = WALK.id if teacher is walk_teacher else PUSH.id
    there = distill(dataclasses.replace(tiny(tmp_path / "gpu", env), device="cuda"), teacher=teacher())
    here = distill(tiny(tmp_path / "cpu", env), teacher=teacher())
    assert there.summary["device"] == "cuda"
    assert all(tensor.device.type == "cpu" for tensor in there.student.state_dict().values())
    assert there.student_episodes.returns.mean() == pytest.approx(here.student_episodes.returns.mean(), rel=0.05, abs=0.05)


def test_what_imitation_made_is_there_even_if_polishing_fails(tmp_path, expert_zip, monkeypatch):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(STAGES, "polish", fail)
    with pytest.raises(ZeroDivisionError):
        distill(tiny(tmp_path, teacher=str(expert_zip)))
    student = Student.load(tmp_path / "student")
    assert evaluate(student, WALK, range(5)).returns.mean() > -12
