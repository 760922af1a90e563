"""Training a teacher with Stable-Baselines3 from a recipe, into a folder in the RL Zoo's layout."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from policy_distill.config import RequestError
from policy_distill.config.code import settings_that_run_code
from policy_distill.pipeline.checkpoint import AGAIN, exists, remove
from policy_distill.studies.train_teacher.checkpoint import Checkpoint, Progress, Saved
from policy_distill.studies.train_teacher.model_state import agent_of, restore_agent, restore_generators
from policy_distill.studies.train_teacher.publish import publish, write_agent, write_card
from policy_distill.studies.train_teacher.recipes import ALGORITHMS, Recipe, TrainTeacherConfig, new_model, recipe_for
from policy_distill.studies.train_teacher.returns import evaluate_model
from policy_distill.support.figures import return_text, spread_text
from policy_distill.support.files import locked, writable_folder, write_json
from policy_distill.support.seeds import derived_seed

FINAL_SEED, VALIDATION_SEED, RESUMED_SEED = 1_000_000, 2_000_000, 10_000_000
"""First seeds of the final and the periodic evaluation. Training uses the run's seed and the next few, and seeds above the last of these
after it was resumed."""
SHARE_OF_TIME = 50
"""Rollouts are trained on for this many times as long as a checkpoint takes before the next is written: at most 2 % of the time."""


@dataclass(frozen=True)
class TrainedTeacher:
    """A trained agent: its folder and return."""

    path: Path
    """Folder ALGO/ENV_RUN."""
    mean: float
    """Mean return over ``episodes`` deterministic episodes, one seed each."""
    std: float
    """Standard deviation of these returns."""
    episodes: int
    """Number of these episodes."""
    steps: int
    """Environment steps of the whole training; the policy that was kept may be from an earlier step."""


def train_teacher(
    config: TrainTeacherConfig, note: Callable[[str], object] = lambda line: None, *, progress: bool | None = None, resume: bool = False
) -> TrainedTeacher:
    """Train an agent, keep its best policy, measure it on fresh seeds and write its folder with a card.

    Args:
        config: settings of the training.
        note: called with one line per periodic evaluation.
        progress: show a progress bar; None: if the output is a terminal.
        resume: continue the interrupted training in ``config.run_folder``. Environments begin new episodes, so the agent is not that of an
            uninterrupted training bit for bit.

    Raises:
        RequestError: if the environment, the algorithm or a hyper-parameter cannot be used, or the training cannot be resumed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for small networks, more threads are slower
    try:
        recipe = recipe_for(config)
        run = writable_folder(Path(config.run_folder or f"runs/train_teacher/{config.algo}-{recipe.name}-{config.seed}"))
        with locked(run):
            return _train(config, recipe, run, note, sys.stderr.isatty() if progress is None else progress, resume)
    finally:
        torch.set_num_threads(threads)


def _train(
    config: TrainTeacherConfig, recipe: Recipe, run: Path, note: Callable[[str], object], progress_bar: bool, resume: bool
) -> TrainedTeacher:
    if exists(run) and not resume:
        raise RequestError(f"{run} holds a training that was interrupted: {how_to_resume(config, run)}, or {AGAIN}")
    model = new_model(config, recipe, str(run / "tensorboard") if config.tensorboard else None)
    try:
        writable_folder(Path(config.output) / config.algo)  # before the training, which may take hours
        checkpoint = Checkpoint(run, config, recipe, model)
        saved = checkpoint.read() if resume else None
        checkpoint.begin()
        (run / "result.json").unlink(missing_ok=True)
        try:
            progress = _learn(config, recipe, model, checkpoint, saved, note, progress_bar)
            trained = _publish(config, recipe, model, progress)
        except BaseException as error:
            if exists(run):
                error.add_note(("" if isinstance(error, KeyboardInterrupt) else "once the cause is gone, ") + how_to_resume(config, run))
            raise
    finally:
        model.env.close()
    write_json(run / "result.json", {**dataclasses.asdict(trained), "path": str(trained.path)})
    remove(run)
    return trained


def _learn(
    config: TrainTeacherConfig, recipe: Recipe, model: Any, checkpoint: Checkpoint, saved: Saved | None, note: Callable[[str], object],
    progress_bar: bool,
) -> Progress:  # fmt: skip
    """Train the model to the end."""
    every = max(1, min(config.eval_freq, recipe.n_timesteps // 20))
    progress = saved.progress if saved else Progress(next_at=every)
    if saved:
        place = f"{model.num_timesteps:,} of {recipe.n_timesteps:,} steps"
        note(f"resumed at {place}; environments begin new episodes, so the agent is not that of an uninterrupted training, bit for bit")
        for line in saved.changed:
            note(f"note: {line}")
        progress.resumed.append(model.num_timesteps)
        model.env.seed(RESUMED_SEED + derived_seed(config.seed, model.num_timesteps) % 2**30)
    keeping = _keeping(config, recipe, checkpoint, progress, every, saved, note)
    left = recipe.n_timesteps - model.num_timesteps
    model.learn(left, callback=keeping, progress_bar=progress_bar, tb_log_name="run", reset_num_timesteps=saved is None)
    return progress


def how_to_resume(config: TrainTeacherConfig, run: Path) -> str:
    """How a training goes on after an interruption, as part of a sentence."""
    typed = " ".join(["", *(found.option for found in settings_that_run_code(vars(config)))])
    return f"go on with: policy-distill train_teacher --resume {shlex.quote(str(run))}{typed.rstrip()}"


def _keeping(
    config: TrainTeacherConfig, recipe: Recipe, checkpoint: Checkpoint, progress: Progress, every: int, saved: Saved | None,
    note: Callable[[str], object],
) -> Any:  # fmt: skip
    """A callback that evaluates the policy periodically on the same episodes, keeps the best one, and writes checkpoints.

    They are written before a rollout begins, when the networks are trained on all earlier transitions.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    seeds = range(VALIDATION_SEED, VALIDATION_SEED + config.validation_episodes)

    class Keeping(BaseCallback):
        next_checkpoint = 0.0

        def _on_training_start(self) -> None:
            if saved:
                restore_generators(self.model, saved.training)

        def _on_rollout_start(self) -> None:
            if (began := time.monotonic()) >= self.next_checkpoint:
                checkpoint.write(progress)
                ended = time.monotonic()
                self.next_checkpoint = ended + SHARE_OF_TIME * (ended - began)

        def _on_step(self) -> bool:
            if self.num_timesteps >= progress.next_at:
                progress.next_at += every
                self._measure()
            return True

        def _on_training_end(self) -> None:
            self._measure()
            checkpoint.write(progress)

        def _measure(self) -> None:
            returns = evaluate_model(self.model, recipe.spec, seeds, self.model.get_vec_normalize_env())
            mean, std = float(returns.mean()), float(returns.std())
            self.logger.record("eval/mean_return", mean)
            self.logger.record("eval/std_return", std)
            self.logger.dump(self.num_timesteps)
            if mean >= progress.best_mean:
                progress.best_mean, progress.best_steps, progress.best = mean, self.num_timesteps, agent_of(self.model)
            of = f"{self.num_timesteps:,} of {recipe.n_timesteps:,} steps"
            note(f"{of}: return {spread_text(mean, std)}, best {return_text(progress.best_mean)}")

    return Keeping()


def _publish(config: TrainTeacherConfig, recipe: Recipe, model: Any, progress: Progress) -> TrainedTeacher:
    """Measure the best agent and write its folder; ``model`` becomes that agent."""
    assert progress.best is not None, "the last policy is measured"
    steps = model.num_timesteps
    restore_agent(model, progress.best)
    statistics = model.get_vec_normalize_env()
    returns = evaluate_model(model, recipe.spec, range(FINAL_SEED, FINAL_SEED + config.eval_episodes), statistics)
    mean, std = float(returns.mean()), float(returns.std())
    run = {key: getattr(config, key) for key in ("algo", "seed", "eval_freq", "eval_episodes", "validation_episodes")}
    card = {
        "algo": config.algo,
        "env": recipe.spec.id,
        "return_mean": round(mean, 3),
        "return_std": round(std, 3),
        "episodes": len(returns),
        "first_seed": FINAL_SEED,
        "env_steps": steps,
        "kept_at_env_step": progress.best_steps,
        **({"resumed_at_env_steps": progress.resumed} if progress.resumed else {}),
        "command": config.command(),
    }

    def write(folder: Path) -> None:
        write_agent(folder, model, statistics, recipe.spec, recipe.settings, run)
        write_card(folder, card, ALGORITHMS[config.algo])

    path = publish(Path(config.output) / config.algo, recipe.name, write)
    return TrainedTeacher(path, mean, std, len(returns), steps)
