"""The agents to time: as a ``Teacher``, and as a Stable-Baselines3 model with the same weights in the same environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for
from policy_distill.teachers.files.archive import read_archive
from policy_distill.teachers.files.trusted import load_model

SHIPPED = ("ppo/CartPole-v1", "ppo/LunarLander-v3")
"""Shipped agents whose policies have ``get_distribution``."""
ON_POLICY = ("a2c", "ppo", "trpo")
"""Algorithms whose policies have ``get_distribution``."""


@dataclass(frozen=True)
class Agent:
    """One agent, as a teacher of this package and as a Stable-Baselines3 model.

    Attributes:
        name: name in the table.
        teacher: the agent as a ``Teacher``.
        spec: the agent's environment.
        model: a live Stable-Baselines3 model with the same weights.
    """

    name: str
    teacher: Teacher
    spec: EnvironmentSpec
    model: Any

    @classmethod
    def load(cls, path_or_name: str) -> Agent:
        """Load a shipped agent or one in an RL Zoo folder; Stable-Baselines3 unpickles the latter."""
        teacher = Teacher.load(path_or_name)
        spec, _ = environment_for(teacher, None)
        assert teacher.path is not None
        archive = read_archive(Path(teacher.path))
        model = load_model(
            Path(teacher.path),
            teacher.algo,
            {"observation_space": archive.observation_space, "action_space": archive.action_space},
        )
        return cls(f"{teacher.algo} {spec.id}", teacher, spec, model)

    def vector_environment(self, num_envs: int, *, processes: bool = False) -> Any:
        """Stable-Baselines3's vector environment, with the agent's normalisation statistics."""
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

        def one() -> Any:
            return Monitor(make(self.spec))

        envs: Any = SubprocVecEnv([one] * num_envs, start_method="fork") if processes else DummyVecEnv([one] * num_envs)
        envs.seed(0)
        known = self.teacher.normalization
        if known is not None:
            envs = VecNormalize(envs, training=False, norm_reward=False, clip_obs=float(known.clip), epsilon=float(known.epsilon))
            envs.obs_rms.mean, envs.obs_rms.var = known.mean, known.var
        return envs


def load_agents(folder: Path | None) -> Sequence[Agent]:
    """The shipped agents, or all agents in an RL Zoo folder whose policies have ``get_distribution``.

    Raises:
        RequestError: if the folder contains none.
    """
    if folder is None:
        return [Agent.load(name) for name in SHIPPED]
    runs = [str(path.parent) for algo in ON_POLICY for path in sorted(folder.glob(f"{algo}/*/*.zip"))]
    if not runs:
        raise RequestError(f"{folder} contains no agent of {', '.join(ON_POLICY)} as ALGO/ENV_RUN/ENV.zip: check the folder's contents")
    return [Agent.load(run) for run in runs]
