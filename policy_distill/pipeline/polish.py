"""The stage after self-distillation: PPO fine-tunes a student that did not keep enough return, and the best snapshot is kept."""

from __future__ import annotations

import dataclasses

import numpy as np

from policy_distill.config import PolishConfig
from policy_distill.evaluation.statistics import contrast, episodes_to_show, retention_of_means, shows_positive_mean
from policy_distill.pipeline.context import WORSE, Services, kept_enough
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.records import Candidate, track_validation
from policy_distill.pipeline.state import Kept, Polishing, State
from policy_distill.support.seeds import derived_seed
from policy_distill.training.ppo.kickstart import Kickstart

WORTH_A_NOTE = 600.0
"""Expected seconds of polishing from which a note announces them: images on the CPU."""


def polish(state: State, services: Services) -> State:
    """Fine-tune the kept student with PPO up to the next snapshot, unless it is shown to keep ``polish.below`` or cannot be fine-tuned.

    After the last snapshot the best one is kept, if it is better than the student before.
    """
    if state.polishing is None and not _begin(state, services):
        state.stage = "value"
        return state
    assert state.polishing is not None
    with state.timed("polish"):
        over = _advance(state, state.polishing, services)
        if over:  # after a failure the workers end, and their environments with them
            services.close_ppo_environments()
    if over:
        _choose(state, state.polishing, services)
        state.polishing, state.stage = None, "value"
    return state


def expected_seconds(state: State, job: Job) -> float:
    """Expected duration of polishing in s, within a factor of about two: from the run's own seconds for steps of environments and training.

    A gradient step trains a policy and a value network of about the same cost. For students of a few layers on vectors, whose steps
    cost more than their arithmetic, the estimate is too low.
    """
    config, train = job.config.polish, job.config.train
    env_steps = -(-config.env_steps // (config.num_envs * config.num_steps)) * config.num_envs * config.num_steps
    batch_size = train.batch_size_of(single_images=job.architecture.reads_single_images)
    trained = state.gradient_steps * batch_size * job.num_members
    stepping = env_steps * state.seconds["collect"] / state.env_steps
    return stepping + 2 * env_steps * config.epochs * state.seconds["train"] / trained


def training_of(job: Job, kept: Kept) -> Kickstart:
    """PPO on a kept student; its view lies around the environments."""
    student = kept.student.behind(job.architecture.without_view)
    return Kickstart(student, job.teacher, job.objective, job.config.polish, seed=_seed(job))


def _seed(job: Job) -> int:
    return derived_seed(job.config.seed, 4)


def _begin(state: State, services: Services) -> bool:
    """Begin a training if the kept student needs it."""
    job, display, family = services.job, services.display, services.job.architecture.family
    if _below(services) == 0 or not np.isfinite(state.retention(state.kept[-1].returns)):
        return False
    if not family.has_density:
        if not _shows_enough(state, services, state.num_first):
            display.note(f"not polished: {type(family).__name__} has no draw and log_prob, which training by reward needs")
        return False
    if _keeps_enough(state, services):
        return False
    kept = state.kept[-1]
    display.note(f"{kept.origin} keeps {state.retention(kept.returns):.3f}, which does not show {_below(services)}: training on by reward")
    if (expected := expected_seconds(state, job)) >= WORTH_A_NOTE:
        display.note(f"this may take about {expected / 60:.0f} minutes; fewer polish.epochs are faster, and --polish.below 0 leaves it out")
    with state.timed("polish"):
        state.polishing = Polishing(training_of(job, kept))
    return True


def _advance(state: State, polishing: Polishing, services: Services) -> bool:
    """Train up to the next snapshot, while the workers evaluate the last one's student; return whether that was the last one."""
    job, config, records = services.job, services.job.config.polish, polishing.records
    if services.ppo_environments is None:
        services.display.start("polishing", config.snapshots - len(records))
        job.objective.calibrate(state.dataset.training_targets())
        services.ppo_environments = services.rollouts.for_ppo(config.num_envs, config.num_steps, _seed(job))
        polishing.training.begin(services.ppo_environments)
    validation = services.begin_validation(state, polishing.students[-1]) if records else None
    snapshot = polishing.training.next_snapshot(services.ppo_environments)
    if validation is not None:
        _record(state, polishing, services, validation.result().returns)
    retentions = [record.validation_retention for record in records]
    student = snapshot.student.behind(job.architecture)
    polishing.students.append(student)
    polishing.critics.append(snapshot.critic)
    records.append(Candidate("polish", len(polishing.students), snapshot.env_steps, snapshot.gradient_steps, snapshot.metrics))
    if not (polishing.training.over or _is_hopeless(state, polishing, config) or kept_enough(retentions, config.enough)):
        return False
    _record(state, polishing, services, services.begin_validation(state, student).result().returns)
    return True


def _is_hopeless(state: State, polishing: Polishing, config: PolishConfig) -> bool:
    """Whether each of the last ``config.patience`` evaluations is hopeless, and their episodes together show it.

    They must be worse than the initial student on the same episodes, which chose it and overestimate it, and than its share of the
    teacher's return on others.
    """
    recent = polishing.returns[-config.patience :]
    if config.hopeless == 0 or len(recent) < config.patience:
        return False
    references = state.with_references(state.kept[-1].returns)
    kept_on_others = retention_of_means(*(_since(state.num_first, returns) for returns in references))
    start, teacher, random = (returns[: state.num_first] for returns in references)
    for reference, share in ((start, config.hopeless), (teacher, config.hopeless * kept_on_others)):
        missing = [-contrast(returns, reference, random, share) for returns in recent]
        if min(values.mean() for values in missing) <= 0 or not shows_positive_mean(np.concatenate(missing), WORSE):
            return False
    return True


def _record(state: State, polishing: Polishing, services: Services, returns: np.ndarray) -> None:
    """Record the returns of the last snapshot's student on the first validation seeds."""
    polishing.returns.append(returns)
    polishing.records[-1] = record = state.validated(polishing.records[-1], returns)
    services.display.advance(record.figures())
    env_steps = state.env_steps + record.env_steps  # the axis continues where imitation ended
    services.tracker.scalars("polish", record.train, env_steps)
    track_validation(services.tracker, record, env_steps, state.reference)


def _choose(state: State, polishing: Polishing, services: Services) -> None:
    """Keep the best snapshot if it is better than the student before.

    Episodes that chose neither of them compare the two, if the student before has played any.
    """
    records, students, kept = polishing.records, polishing.students, state.kept[-1]
    better = False
    with state.timed("evaluate"):
        chosen, full = services.choose(state, students, polishing.returns, start=kept.returns)
        if chosen is not None:
            played = len(full[chosen])
            if others := state.seeds[played : len(kept.returns)]:
                full[chosen] = np.concatenate([full[chosen], services.begin(state, students[chosen], others).result().returns])
            since = played if others else state.num_first
            better = _since(since, full[chosen]).mean() > _since(since, kept.returns[: len(full[chosen])]).mean()
    for index, returns in full.items():
        records[index] = records[index].as_finalist(returns)
    if chosen is not None and better:
        records[chosen] = dataclasses.replace(records[chosen], kept=True)
        state.kept.append(Kept(students[chosen], full[chosen], f"polish, {records[chosen].env_steps:,} steps"))
        state.critic = polishing.critics[chosen]
    state.records += records
    state.env_steps += records[-1].env_steps
    state.gradient_steps += records[-1].gradient_steps


def _keeps_enough(state: State, services: Services) -> bool:
    """Whether new episodes show that the kept student keeps enough.

    The episodes that chose it from many candidates overestimate it, so they only say how many others are likely to show it. They decide
    if ``polish.further_episodes`` is 0; if more would be needed, none are played.
    """
    job, config, kept = services.job, services.job.config.polish, state.kept[-1]
    if config.further_episodes == 0:
        return _shows_enough(state, services, state.num_first)
    needed = episodes_to_show(_contrast(state, _below(services), state.num_first), config.confidence)
    if needed is None or needed > config.further_episodes:
        return False
    more = min(max(needed, job.finalist_episodes, 2), config.further_episodes)
    retention = state.retention(kept.returns)
    services.display.note(f"{kept.origin} keeps {retention:.3f} on the episodes that chose it; {more} others decide whether it is polished")
    with state.timed("evaluate"):
        services.extend_validation(state, more)
    return _shows_enough(state, services, len(kept.returns))


def _shows_enough(state: State, services: Services, since: int) -> bool:
    """Whether the kept student's returns from number ``since`` on show that it keeps enough; see ``_since``."""
    return shows_positive_mean(_contrast(state, _below(services), since), services.job.config.polish.confidence)


def _below(services: Services) -> float:
    return services.job.config.polish.below_of(has_convolutions=bool(services.job.architecture.channels))


def _contrast(state: State, share: float, since: int) -> np.ndarray:
    """The contrast ``[E]`` of the kept student with ``share``; see ``statistics.contrast`` and ``_since``."""
    student, teacher, random = (_since(since, returns) for returns in state.with_references(state.kept[-1].returns))
    return contrast(student, teacher, random, share)


def _since(number: int, returns: np.ndarray) -> np.ndarray:
    """Returns ``[E]`` without the first ``number``, which selected the student and are biased upwards; all if there are no others."""
    return returns[number:] if len(returns) > number else returns
