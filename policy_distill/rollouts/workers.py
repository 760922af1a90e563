"""Collection and evaluation in worker processes, one torch thread each. Results do not depend on the number of workers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import gymnasium as gym

from policy_distill.config import EngineConfig, RequestError
from policy_distill.environments.specs import EnvironmentSpec, for_worker, make
from policy_distill.environments.vector import WORDS, Backend, group_size
from policy_distill.policies.policy import Policy
from policy_distill.policies.student import Student
from policy_distill.policies.views import View, ViewedEnv
from policy_distill.rollouts.collect import NO_EXPLORATION, Collector, Exploration, concatenate, executed
from policy_distill.rollouts.episodes import Episodes, evaluate, merge
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.rollouts.processes import Distant, Host, Local, Recovery, Remote, Site, available_cores
from policy_distill.rollouts.transitions import Transitions
from policy_distill.support import trees
from policy_distill.support.pending import Pending
from policy_distill.support.ray_cluster import room
from policy_distill.teachers import RecurrentTeacher, Teacher

Answer = TypeVar("Answer")

BLOCK_BYTES = 2**23
"""Size of the observations in a yielded block, so that a round need not fit into memory in addition to the dataset."""


class Rollouts:
    """The environments of a run, divided among worker processes; a context manager.

    Args:
        spec: the environment.
        teacher: labels and acts; each worker has a copy.
        num_envs: number of environments for collection, over all workers.
        seed: the run's seed.
        workers: number of processes; None: one per core; 0: everything runs in this process.
        backend: steps the environments for collection; see ``environments.vector``. Returns are always measured in Gymnasium's
            environments.
        step_timeout: limit in seconds for a step or a reset; at least one worker is then used, and ended if it exceeds the limit. None
            or 0: no limit.
        view: the students' view; None: students see all observations.
        recovery: what is done if an environment raises, hangs or ends its worker; None: that ends the work.
        engine: where the processes run. On a Ray cluster there is at least one, and by default as many as it has room for.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        teacher: Teacher | None,
        *,
        num_envs: int,
        seed: int,
        workers: int | None = None,
        backend: Backend = "gymnasium",
        step_timeout: float | None = None,
        view: View | None = None,
        recovery: Recovery | None = None,
        engine: EngineConfig = EngineConfig(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.num_envs, self._teacher, self._backend = num_envs, teacher, backend
        on_ray = engine.kind == "ray"
        most = room(engine) if on_ray else available_cores()
        if on_ray and workers is not None and workers > most:
            raise RequestError(f"workers is {workers}, and the Ray cluster has room for {most}: lower --workers or --engine.cpus")
        count = min(most if workers is None else workers, num_envs)
        self.num_workers = count = max(count, 1) if step_timeout or on_ray else count
        self._where = "worker process on the Ray cluster" if on_ray else "worker process"
        self._spec = for_worker(spec) if count else spec
        shares = shares_of(num_envs, max(count, 1), group_size(backend))
        self._collecting = len(shares)
        shares += [range(0)] * (count - len(shares))  # these workers only evaluate
        self._view = view
        arguments = [(self._spec, teacher, share, num_envs, seed, backend, view) for share in shares]
        start = functools.partial(Distant, engine) if on_ray else Remote
        shared = recovery or Recovery()
        self._sites: list[Site] = [
            start(_Shard, *each, step_timeout=step_timeout, recovery=shared) for each in (arguments if count else [])
        ]
        self._sites = self._sites or [Local(_Shard(*arguments[0]))]

    @property
    def backend(self) -> str:
        """Description of the environments for collection and of the processes that step them."""
        environments = f"{self.num_envs} {WORDS[self._backend]}"
        if not self.num_workers:
            return f"{environments} in this process"
        where = self._where.replace("process", "processes") if self._collecting > 1 else self._where
        return f"{environments} in {self._collecting} {where}"

    def collect(
        self,
        num_steps: int,
        student: Student | None,
        teacher_action_prob: float,
        round_index: int,
        exploration: Exploration = NO_EXPLORATION,
    ) -> Iterator[Transitions]:
        """Take ``num_steps`` steps in each environment and yield them a block at a time; see ``Collector.collect``."""
        for first in range(0, num_steps, self._block_steps):
            steps = min(self._block_steps, num_steps - first)
            arguments = (steps, student, teacher_action_prob, round_index, exploration)
            parts = self._submit("collect", [arguments] * self._collecting, changes="environments").result()
            yield executed(parts[0] if len(parts) == 1 else concatenate(parts, steps))

    @property
    def _block_steps(self) -> int:
        """Steps of all environments in one block."""
        assert self._teacher is not None, "collection needs a teacher"
        return max(1, BLOCK_BYTES // (self.num_envs * trees.row_bytes(self._teacher.observation_space)))

    def evaluate(self, policy: Policy | str, seeds: Sequence[int], *, num_envs: int, with_agreement: bool = False) -> Episodes:
        """Episodes of ``policy``, "teacher" or "random", one per seed; see ``policy_distill.rollouts.episodes.evaluate``."""
        return self.begin_evaluation(policy, seeds, num_envs=num_envs, with_agreement=with_agreement).result()

    def begin_evaluation(
        self, policy: Policy | str, seeds: Sequence[int], *, num_envs: int, with_agreement: bool = False
    ) -> Pending[Episodes]:
        """Start ``evaluate`` in the workers; without workers it runs immediately."""
        shares = [share for share in (seeds[index :: len(self._sites)] for index in range(len(self._sites))) if len(share)]
        return self._submit("evaluate", [(policy, share, num_envs, with_agreement) for share in shares]).then(merge)

    def for_ppo(self, num_envs: int, num_steps: int, seed: int) -> RolloutEnv:
        """Environments for PPO that return the students' inputs, divided among the same workers; see ``RolloutEnv``."""
        # feed-forward teachers label batches during training; behind a view the teacher's inputs are missing
        teacher = self._teacher if isinstance(self._teacher, RecurrentTeacher) and self._view is None else None
        envs = [functools.partial(_make, self._spec, self._view)] * num_envs
        return RolloutEnv(envs, num_steps, seed=seed, teacher=teacher, sites=self._sites)

    def ask_each(self, function: Callable[[], Answer]) -> list[Answer]:
        """``function()`` in each worker."""
        return self._submit("answer", [(function,)] * len(self._sites)).result()

    def close(self) -> None:
        """End the workers."""
        for site in self._sites:
            site.ask_to_end()
        for site in self._sites:
            site.close()
        self._sites = []

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, method: str, arguments: Sequence[tuple[Any, ...]], changes: str = "") -> Pending[list[Any]]:
        """Call a method of one worker for each element of ``arguments``; see ``Remote.submit``. A worker runs its calls in order."""
        return Pending.together([site.submit(method, *each, changes=changes) for site, each in zip(self._sites, arguments, strict=False)])


def _make(spec: EnvironmentSpec, view: View | None) -> gym.Env:
    return make(spec) if view is None else ViewedEnv(make(spec), view)


def split(indices: range, parts: int) -> list[range]:
    """Split ``indices`` into ``parts`` contiguous ranges whose lengths differ by at most one."""
    edges = [len(indices) * part // parts for part in range(parts + 1)]
    return [indices[start:stop] for start, stop in itertools.pairwise(edges)]


def shares_of(num_envs: int, parts: int, group: int) -> list[range]:
    """Split ``num_envs`` environments into at most ``parts`` non-empty ranges of whole groups of ``group``."""
    shares = split(range(-(-num_envs // group)), parts)
    return [range(share.start * group, min(share.stop * group, num_envs)) for share in shares if len(share)]


class _Shard(Host):
    """The object in each worker; without workers it lives in this process."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        teacher: Teacher | None,
        indices: range,
        num_envs: int,
        seed: int,
        backend: Backend,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self._spec, self._teacher = spec, teacher
        self._collector: Collector | None = None
        self._evaluation_envs: list[gym.Env] = []
        self._make_collector = lambda: Collector(spec, indices=indices, num_envs=num_envs, seed=seed, backend=backend, view=view)

    def close(self) -> None:
        """Close all environments, which may have processes and files of their own."""
        super().close()
        if self._collector is not None:
            self._collector.close()
        for env in self._evaluation_envs:
            env.close()

    def answer(self, function: Callable[[], Answer]) -> Answer:
        return function()

    def collect(
        self, num_steps: int, student: Student | None, teacher_action_prob: float, round_index: int, exploration: Exploration
    ) -> Transitions:
        assert self._teacher is not None, "collection needs a teacher"
        if self._collector is None:
            self._collector = self._make_collector()
        return self._collector.collect(
            num_steps, self._teacher, student, teacher_action_prob, round_index=round_index, exploration=exploration
        )

    def evaluate(self, policy: Policy | str, seeds: Sequence[int], num_envs: int, with_agreement: bool) -> Episodes:
        named: dict[str, Policy | None] = {"teacher": self._teacher, "random": None}
        acting_policy = named[policy] if isinstance(policy, str) else policy
        reference = self._teacher if with_agreement else None
        return evaluate(acting_policy, self._spec, seeds, num_envs=num_envs, reference=reference, envs=self._evaluation_envs)
