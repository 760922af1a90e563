"""Good files of every kind that the project reads, and the function that reads each: what damage begins with."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml

from policy_distill.commands.options.parser import Parser
from policy_distill.config import DistillConfig, InputsConfig
from policy_distill.environments.specs import resolve
from policy_distill.evaluation.disagreements import Disagreements, read_worst_states
from policy_distill.evaluation.measure import certify, load_policy, teacher_of
from policy_distill.evaluation.return_cache import KnownReturns
from policy_distill.evaluation.statistics import Plan
from policy_distill.evaluation.teacher_check import find_claim
from policy_distill.evaluation.verify import verify
from policy_distill.pipeline.prepare import environment_for
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.report.suite_page import write_suite_report
from policy_distill.report.write import write_report
from policy_distill.rollouts.episodes import Episodes
from policy_distill.studies.ablation import Study
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.training_record import read_training_record
from tests.report.example import SUMMARY
from tests.small_worlds import WALK, walk_expert
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build
from tests.teachers.kinds import GOALS

CANARY = "policy_distill_fuzz_canary"
"""A module that no file may make the project import; it lies where Python would find it."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        path: of the file in the corpus.
        form: of its contents: ``json``, ``yaml``, ``pickle``, ``npz``, ``safetensors``, ``zip`` or ``text``.
        read: reads the file's folder as the commands do.
        share: how often it is drawn.
        member: of the zip at ``path`` that holds the contents, for ``form``; None for the file itself.
    """

    name: str
    path: str
    form: str
    read: Callable[[Path], object]
    share: int = 4
    member: str | None = None


def load_agent(folder: Path) -> None:
    """Everything that is read of an agent before it plays."""
    teacher = Teacher.load(folder)
    assert teacher.path is not None
    read_training_record(teacher.path)
    find_claim(Path(teacher.path))
    environment_for(teacher, None if teacher.saved_env else "CartPole-v1")


def load_student(folder: Path) -> None:
    load_policy(str(folder))
    teacher_of(str(folder), None)


def check_certificate(folder: Path) -> None:
    verify(folder / "certificate.json", episodes=0, workers=0)


def read_config(folder: Path) -> None:
    parser = Parser("distill_policy")
    parser.add_class_arguments(DistillConfig)
    parser.config(parser.parse(["--config", str(folder / "config.yaml")]), DistillConfig)


def read_states(folder: Path) -> None:
    read_worst_states(folder / "disagreements.npz", WALK_SPACE, 100)


def read_known(folder: Path) -> None:
    KnownReturns(folder / "known.npz").read(range(4))


IMAGE = gym.spaces.Box(0, 255, (2, 36, 40), np.uint8)
WALK_SPACE = walk_expert().observation_space
RUN, GOAL_RUN = "ppo/CartPole-v1_1", "ppo/Goals-v0_1"
KINDS = (
    Kind("agent's zip", f"{RUN}/CartPole-v1.zip", "zip", load_agent, 16),
    Kind("agent's data", f"{RUN}/CartPole-v1.zip", "json", load_agent, 24, "data"),
    Kind("agent's weights", f"{RUN}/CartPole-v1.zip", "zip", load_agent, 16, "policy.pth"),
    Kind("agent's weights, pickle", "sac/agent/agent.zip", "weights", load_agent, 24, "policy.pth"),
    Kind("agent's weights of old PyTorch", "dqn/agent/agent.zip", "pickle", load_agent, 20, "policy.pth"),
    Kind("agent's config.yml", f"{RUN}/CartPole-v1/config.yml", "yaml", load_agent, 16),
    Kind("agent's args.yml", f"{RUN}/CartPole-v1/args.yml", "yaml", load_agent, 12),
    Kind("vecnormalize.pkl", f"{RUN}/CartPole-v1/vecnormalize.pkl", "pickle", load_agent, 24),
    Kind("card.json", "claims/card/card.json", "json", lambda folder: find_claim(folder / "agent.zip"), 6),
    Kind("evaluations.npz", "claims/evaluations/evaluations.npz", "npz", lambda folder: find_claim(folder / "agent.zip"), 12),
    Kind("results.json", "claims/hub/results.json", "json", lambda folder: find_claim(folder / "agent.zip"), 6),
    Kind("README.md", "claims/readme/README.md", "text", lambda folder: find_claim(folder / "agent.zip"), 3),
    Kind("student.json", "run/student/student.json", "json", load_student, 24),
    Kind("student.safetensors", "run/student/student.safetensors", "safetensors", load_student, 20),
    Kind("student.json, memory and view", "seeing/student.json", "json", load_student, 24),
    Kind("student.json, images", "pictures/student.json", "json", load_student, 16),
    Kind("student.safetensors, memory", "seeing/student.safetensors", "safetensors", load_student, 12),
    Kind("recurrent agent's data", "ppo_lstm/agent/agent.zip", "json", load_agent, 16, "data"),
    Kind("recurrent agent's weights", "ppo_lstm/agent/agent.zip", "weights", load_agent, 16, "policy.pth"),
    Kind("image agent's data", "a2c/agent/agent.zip", "json", load_agent, 16, "data"),
    Kind("Dict agent's data", f"{GOAL_RUN}/Goals-v0.zip", "json", load_agent, 16, "data"),
    Kind("vecnormalize.pkl of a Dict", f"{GOAL_RUN}/Goals-v0/vecnormalize.pkl", "pickle", load_agent, 20),
    Kind("certificate.json", "run/certificate.json", "json", check_certificate, 20),
    Kind("result.json", "results/result.json", "json", write_report, 1),
    Kind("suite.json", "suites/suite.json", "json", write_suite_report, 1),
    Kind("disagreements.npz", "states/disagreements.npz", "npz", read_states, 12),
    Kind("known returns", "known/known.npz", "npz", read_known, 6),
    Kind("config.yaml", "configs/config.yaml", "yaml", read_config, 6),
    Kind("environment", "environments/env.yaml", "yaml", lambda folder: resolve(str(folder / "env.yaml")), 12),
    Kind("study", "studies/study.yaml", "yaml", lambda folder: Study.load(folder / "study.yaml"), 6),
)


def folder_of(kind: Kind, root: Path) -> Path:
    """What ``kind.read`` is given."""
    path = root / kind.path
    return path.parents[1] if path.suffix in (".yml", ".pkl") else path.parent


def make_corpus(root: Path) -> Path:
    """Write one good file of each kind below ``root``, and the module that must not be imported."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{CANARY}.py").write_text(
        "import os\nopen(os.path.join(os.path.dirname(__file__), 'executed'), 'a').write('x')\ndef fire(*_): return 1\n"
    )
    _agents(root)
    _agents_of_other_kinds(root)
    _students(root)
    _claims(root / "claims")
    _run(root / "run", root / RUN / "CartPole-v1.zip")
    for name in ("results", "suites", "states", "known", "configs", "environments", "studies"):
        (root / name).mkdir()
    (root / "results/result.json").write_text(json.dumps(SUMMARY))
    row = {
        "teacher": "ppo/One", "status": "done", "env": "One-v1", "params": 5000, "student": "[8, 8]", "student_params": 50,
        "compression": 100.0,
        "teacher_return": 100.0, "student_return": 90.0, "retention": 0.9, "low": 0.8, "high": 1.0, "agreement": 0.9, "env_steps": 10,
        "seconds": 90.0, "reason": None,
    }  # fmt: skip
    suite = {"rows": [row, {**row, "status": "failed", "reason": "why"}], "aggregates": {}, "worth_compressing": 4000, "config": {}}
    (root / "suites/suite.json").write_text(json.dumps(suite))
    _arrays(root)
    config = {"teacher": "ppo/LunarLander-v3", "seed": 3, "loss": {"temperature": 2.0}, "train": {"vary": [{"learning_rate": 0.003}]},
              "student": {"hidden_sizes": [8, 8]}, "ensemble": {"teachers": []}}  # fmt: skip
    (root / "configs/config.yaml").write_text(yaml.safe_dump(config))
    environment = {"id": "CartPole-v1", "kwargs": {"a": 1}, "wrappers": ["TimeFeatureWrapper", {"VecFrameStack": {"n_stack": 2}}],
                   "evaluation": {"episodes": 10, "max_episode_steps": 100}}  # fmt: skip
    (root / "environments/env.yaml").write_text(yaml.safe_dump(environment))
    study = {"title": "t", "introduction": "i", "base": {"seed": 1}, "agents": {"a": {"teacher": "ppo/LunarLander-v3"}},
             "groups": {"g": {"variants": {"v": {"loss.temperature": 2.0}}, "learned": "l"}}, "seeds": [0, 1]}  # fmt: skip
    (root / "studies/study.yaml").write_text(yaml.safe_dump(study))
    return root


def _agents(root: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    settings = root / RUN / "CartPole-v1"
    settings.mkdir(parents=True)
    build("PPO", policy_kwargs={"activation_fn": torch.nn.ELU, "net_arch": [7, 5]}).save(root / RUN / "CartPole-v1.zip")
    (settings / "config.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - \"{'norm_obs': True}\"\n"
        "  - - env_kwargs\n    - dict(a=1)\n"
        "  - - env_wrapper\n    - - sb3_contrib.common.wrappers.TimeFeatureWrapper:\n          test_mode: true\n"
        "  - - frame_stack\n    - 2\n"
    )
    (settings / "args.yml").write_text(yaml.safe_dump({"algo": "ppo", "env": "CartPole-v1", "env_kwargs": {"b": 2}}))
    statistics = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]))
    statistics.obs_rms.mean[:] = [1, 2, 3]  # type: ignore[union-attr, attr-defined, unused-ignore]
    statistics.save(str(settings / "vecnormalize.pkl"))
    for algo, action_space in (("sac", LOPSIDED), ("dqn", THREE)):
        (root / algo / "agent").mkdir(parents=True)
        model = build(algo.upper(), action_space=action_space)
        path = root / algo / "agent" / "agent.zip"
        model.save(path)
        if algo == "dqn":
            replace_member(path, "policy.pth", legacy_weights(model.policy.state_dict()))


def _agents_of_other_kinds(root: Path) -> None:
    """With a memory, with convolutions, and with a Dict and its statistics."""
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    memory = {"lstm_hidden_size": 6, "n_lstm_layers": 2}
    convolutions = {"features_extractor_kwargs": {"features_dim": 8}}
    agents = {
        "ppo_lstm/agent/agent.zip": build("RecurrentPPO", policy="MlpLstmPolicy", policy_kwargs=memory),
        "a2c/agent/agent.zip": build("A2C", IMAGE, THREE, policy="CnnPolicy", policy_kwargs=convolutions),
        f"{GOAL_RUN}/Goals-v0.zip": build("PPO", GOALS, policy="MultiInputPolicy"),
    }
    for path, model in agents.items():
        (root / path).parent.mkdir(parents=True)
        model.save(root / path)
    (root / GOAL_RUN / "Goals-v0").mkdir()
    VecNormalize(DummyVecEnv([lambda: TinyEnv(GOALS, LOPSIDED)])).save(str(root / GOAL_RUN / "Goals-v0/vecnormalize.pkl"))


def _students(root: Path) -> None:
    """With all that student.json can say of one."""
    view = View(InputsConfig(keys=("observation", "desired_goal"), history=2, noise=0.1), GOALS)
    remembers = Architecture(GOALS, LOPSIDED, (8,), memory=4, view=view, columns=(0, 1, 3))
    selects = View(InputsConfig(history=2), IMAGE)
    for name, architecture in {"seeing": remembers, "pictures": Architecture(IMAGE, THREE, (8,), channels=(2, 3, 3), view=selects)}.items():
        Student(architecture).save(root / name, extra={"environment": WALK.to_dict()})
        without_hash(root / name)


def without_hash(student: Path) -> None:
    """Take the weights' hash out of student.json, so that damaged weights are not refused before they are parsed."""
    data = json.loads((student / "student.json").read_text())
    del data["weights_sha256"]
    (student / "student.json").write_text(json.dumps(data))


def legacy_weights(weights: Any) -> bytes:
    """As PyTorch wrote them before 1.6."""
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _claims(root: Path) -> None:
    for name in ("card", "evaluations", "hub", "readme"):
        (root / name).mkdir(parents=True)
    (root / "card/card.json").write_text(json.dumps({"return_mean": 1.0, "return_std": 0.5, "episodes": 10}))
    np.savez(root / "evaluations/evaluations.npz", results=np.arange(6.0).reshape(2, 3), timesteps=np.arange(2))
    (root / "hub/results.json").write_text(json.dumps({"mean_reward": 478.5, "std_reward": 12.25, "n_eval_episodes": 10}))
    (root / "readme/README.md").write_text("    - type: mean_reward\n      value: 3478.80 +/- 821.71\n")


def _run(folder: Path, agent: Path) -> None:
    student = walk_expert()
    student.save(folder / "student", extra={"environment": WALK.to_dict(), "teacher": {"path": str(agent), "algo": "ppo"}})
    without_hash(folder / "student")
    from policy_distill.export.sb3 import save_ppo

    save_ppo(student, folder / "ppo.zip")
    plan = Plan.of(0.9, max_episodes=60)
    certify(str(folder / "student"), teacher=str(folder / "ppo.zip"), plan=plan, output=str(folder), workers=0)


def _arrays(root: Path) -> None:
    KnownReturns(root / "known/known.npz").add(Episodes(np.arange(4), np.arange(4.0), np.arange(1, 5)))
    numbers = np.arange(3)
    found = Disagreements(
        WALK.id, "q_gap", 30, np.ones((3, 2), np.float32), numbers, numbers, numbers[::-1] * 1.0, numbers, numbers,
        numbers, numbers * 1.0, numbers * 1.0, numbers, numbers, numbers, numbers,
    )  # fmt: skip
    found.save(root / "states/disagreements.npz")


def replace_member(path: Path, name: str, content: bytes) -> None:
    """Write the zip at ``path`` again with another member ``name``."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    path.write_bytes(zip_of({**members, name: content}))


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def fresh(root: Path) -> Path:
    """An empty folder in place of what was there."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    return root


assert isinstance(WALK_SPACE, gym.spaces.Box)
