"""Collecting and evaluating in worker processes, one torch thread each; the results do not depend on how many there are."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import torch

from policy_distill.collect import NO_EXPLORATION, Collector, Exploration, concatenate
from policy_distill.dataset import Transitions
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import Episodes, EpisodicPolicy, Policy, evaluate, merge
from policy_distill.students import Student
from policy_distill.teachers import Teacher


class Rollouts:
    """The environments of a run, shared out among worker processes; a context manager.

    Args:
        spec: the environment.
        teacher: labels and acts; each worker has a copy.
        num_envs: environments that transitions are collected from, over all workers.
        seed: of the run.
        workers: processes; None: one a core, 0: none, everything happens here.
    """

    def __init__(self, spec: EnvironmentSpec, teacher: Teacher | None, *, num_envs: int, seed: int, workers: int | None = None) -> None:
        self.num_envs = num_envs
        count = min(available_cores() if workers is None else workers, num_envs)
        shares = split(range(num_envs), max(count, 1))
        self._here = _Shard(spec, teacher, shares[0], num_envs, seed) if count == 0 else None
        self._workers = [_Worker(spec, teacher, share, num_envs, seed) for share in shares] if count else []

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def backend(self) -> str:
        """Where the environments are stepped, for a person."""
        if not self._workers:
            return f"{self.num_envs} environments in this process"
        return f"{self.num_envs} environments in {self.num_workers} worker process{'es' if self.num_workers > 1 else ''}"

    def collect(
        self,
        num_steps: int,
        student: Student | None,
        teacher_action_prob: float,
        round_index: int,
        exploration: Exploration = NO_EXPLORATION,
    ) -> Transitions:
        """Take ``num_steps`` steps in each environment; see ``Collector.collect``."""
        arguments = (num_steps, student, teacher_action_prob, round_index, exploration)
        if self._here is not None:
            return self._here.collect(*arguments)
        return concatenate(self._begin("collect", [arguments] * self.num_workers)(), num_steps)

    def evaluate(
        self, policy: Policy | EpisodicPolicy | str, seeds: Sequence[int], *, num_envs: int, with_agreement: bool = False
    ) -> Episodes:
        """One episode a seed of ``policy``, or of "teacher" or "random"; see ``policy_distill.evaluate.evaluate``."""
        return self.begin_evaluation(policy, seeds, num_envs=num_envs, with_agreement=with_agreement)()

    def begin_evaluation(
        self, policy: Policy | EpisodicPolicy | str, seeds: Sequence[int], *, num_envs: int, with_agreement: bool = False
    ) -> Callable[[], Episodes]:
        """Start ``evaluate`` in the workers and return what waits for its answer; ask for answers in the order of the questions."""
        if self._here is not None:
            episodes = merge([self._here.evaluate(policy, seeds, num_envs, with_agreement)])
            return lambda: episodes
        shares = [share for share in (seeds[index :: self.num_workers] for index in range(self.num_workers)) if len(share)]
        answers = self._begin("evaluate", [(policy, share, num_envs, with_agreement) for share in shares])
        return lambda: merge(answers())

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Callable[[], list[Any]]:
        """Put one call to each worker and return what waits for all answers. A worker takes its calls one after the other."""
        asked = [worker for worker, _ in zip(self._workers, arguments, strict=False)]
        for worker, arguments_of in zip(asked, arguments, strict=True):
            worker.send(method, arguments_of)

        def answers() -> list[Any]:
            received = [worker.receive() for worker in asked]  # all of them, so that none is taken for the answer to a later question
            for failed, answer in received:
                if failed:
                    raise RuntimeError(f"a worker process failed:\n{answer}")
            return [answer for _, answer in received]

        return answers


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(indices: range, parts: int) -> list[range]:
    """Cut ``indices`` into ``parts`` contiguous ranges whose lengths differ by one at most."""
    edges = [len(indices) * part // parts for part in range(parts + 1)]
    return [indices[start:stop] for start, stop in itertools.pairwise(edges)]


class _Shard:
    """What one worker does; the same code runs in this process when there are no workers."""

    def __init__(self, spec: EnvironmentSpec, teacher: Teacher | None, indices: range, num_envs: int, seed: int) -> None:
        self._spec, self._teacher = spec, teacher
        self._collector: Collector | None = None
        self._evaluation_envs: list[gym.Env] = []
        self._make_collector = lambda: Collector(spec, indices=indices, num_envs=num_envs, seed=seed)

    def collect(
        self, num_steps: int, student: Student | None, teacher_action_prob: float, round_index: int, exploration: Exploration
    ) -> Transitions:
        assert self._teacher is not None, "there is no teacher that could label"
        if self._collector is None:
            self._collector = self._make_collector()
        return self._collector.collect(
            num_steps, self._teacher, student, teacher_action_prob, round_index=round_index, exploration=exploration
        )

    def evaluate(self, policy: Policy | EpisodicPolicy | str, seeds: Sequence[int], num_envs: int, with_agreement: bool) -> Episodes:
        known: dict[str, Policy | EpisodicPolicy | None] = {"teacher": self._teacher, "random": None}
        who = known[policy] if isinstance(policy, str) else policy
        reference = self._teacher if with_agreement else None
        return evaluate(who, self._spec, seeds, num_envs=num_envs, reference=reference, envs=self._evaluation_envs)


class _Worker:
    """A process that holds a ``_Shard`` and answers calls of its methods."""

    def __init__(self, *shard: Any) -> None:
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._connection, shard), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def send(self, method: str, arguments: tuple[Any, ...]) -> None:
        self._connection.send_bytes(pickle.dumps((method, arguments)))

    def receive(self) -> tuple[bool, Any]:
        """Return whether the call failed, and its result or traceback."""
        try:
            answer: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        except EOFError:
            self._process.join(1)
            raise RuntimeError(f"a worker process died (exit code {self._process.exitcode}); was the memory enough?") from None
        return answer

    def close(self) -> None:
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # it died meanwhile
                self._connection.send_bytes(pickle.dumps(None))
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
        self._connection.close()


def _serve(connection: Connection, parents_end: Connection, shard: tuple[Any, ...]) -> None:
    """Answer calls until told to stop or the parent is gone.

    A thread takes the questions in while earlier ones are worked on. Without it parent and worker could wait for each other for ever: the
    one with a question that does not fit into the pipe, the other with an answer that does not.

    Messages are plain pickles between this program's own processes: torch's sharing of tensors would hand over file descriptors and
    run out of them.
    """
    parents_end.close()
    torch.set_num_threads(1)
    worker = _Shard(*shard)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(connection, questions), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while (message := pickle.loads(questions.get())) is not None:
            method, arguments = message
            try:
                answer = (False, getattr(worker, method)(*arguments))
            except Exception:  # passed on to the process that asked
                answer = (True, traceback.format_exc())
            connection.send_bytes(pickle.dumps(answer))


def _take_in(connection: Connection, questions: queue.SimpleQueue[bytes]) -> None:
    """Pass on what comes, and the end when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.put(connection.recv_bytes())
    questions.put(pickle.dumps(None))
