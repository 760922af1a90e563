"""Ablation studies: the same job with one setting changed at a time, over agents and seeds, as a Markdown page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import DistillConfig, EngineConfig, RequestError
from policy_distill.config.code import settings_that_run_code
from policy_distill.evaluation.statistics.intervals import RESAMPLES, percentile_ends
from policy_distill.rollouts.watchdog import STEP_TIMEOUT
from policy_distill.studies.scheduler.jobs import Outcome, StudyJob, with_extractor
from policy_distill.studies.scheduler.schedule import run_jobs
from policy_distill.support.files import locked, writable_folder
from policy_distill.support.untrusted import read_yaml, refuse_damage

Key = tuple[str, str, str, int]
"""A run's group, variant, agent and seed."""
DEFAULT = "default"
MAX_RUNS = 100_000


@dataclass(frozen=True)
class Study:
    """Definition of an ablation study.

    Attributes:
        title: title of the page.
        introduction: first paragraph of the page.
        base: settings of every run, by dotted name.
        agents: name -> settings of each agent, at least the teacher and the student's size.
        groups: title -> ``{"variants": {name -> settings}, "learned": conclusion, "agents": names; left out: all}``.
        seeds: training seeds.
    """

    title: str
    introduction: str
    base: dict[str, Any]
    agents: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study from YAML.

        Raises:
            RequestError: if a key is missing or unknown.
        """
        data = read_yaml(path, "it must be YAML such as docs/ablation.yaml")
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            raise RequestError(f"{path} must have exactly the keys {', '.join(sorted(names))}")
        with refuse_damage(path, "it must be YAML such as docs/ablation.yaml"):
            title, introduction = (" ".join(str(data[name]).split()) for name in ("title", "introduction"))
            base, agents, groups = (dict(data[name] or {}) for name in ("base", "agents", "groups"))
            study = cls(title, introduction, base, agents, groups, tuple(data["seeds"]))
            variants = 1 + sum(len(content["variants"]) for content in groups.values())
            if (runs := len(agents) * len(study.seeds) * variants) > MAX_RUNS:
                raise ValueError(f"it asks for {runs:,} runs")
            for settings in study.runs().values():
                for found in settings_that_run_code(settings):
                    typed = found.name in ("trust", "extractor")
                    instead = f"type {found.option} on the command line" if typed else "distil that agent with distill_policy"
                    raise ValueError(f"it {found.what}, which a study does not allow: {instead}")
        return study

    def runs(self) -> dict[Key, dict[str, Any]]:
        """(group, variant, agent, seed) -> settings; the default runs once per agent and seed, in the group ``default``."""
        found: dict[Key, dict[str, Any]] = {}
        for agent, own in self.agents.items():
            for seed in self.seeds:
                shared = {**self.base, **own, "seed": seed}
                found[DEFAULT, DEFAULT, agent, seed] = shared
                for group, content in self.groups.items():
                    if agent in content.get("agents", self.agents):
                        found |= {(group, name, agent, seed): {**shared, **changes} for name, changes in content["variants"].items()}
        return found


@dataclass(frozen=True)
class Found:
    """Result of a run.

    Attributes:
        retention: the final retention; nan if the run failed.
        generations: for each generation of self-distillation, whether it was kept.
    """

    retention: float
    generations: tuple[bool, ...] = ()

    @classmethod
    def of(cls, outcome: Outcome) -> Found:
        if outcome.summary is None:
            return cls(math.nan)
        retention = outcome.summary["retention"]["estimate"]
        generations = tuple(bool(generation["kept"]) for generation in outcome.summary["self_distillation"])
        return cls(math.nan if retention is None else float(retention), generations)


def jobs_of(study: Study, output: Path, *, extractor: str | None = None, trust: bool = False) -> dict[Key, StudyJob]:
    """The study's runs as jobs, sorted by seed, so that an interrupted study has all variants on the first seeds.

    Args:
        study: the study.
        output: folder of the runs.
        extractor: ``file.py:Class`` of the features extractor of agents that have one of this name.
        trust: whether Stable-Baselines3 may unpickle agents that cannot be rebuilt.

    Raises:
        RequestError: for an unknown setting or an invalid value, or if no agent needs ``extractor``.
    """
    configs = {}
    for key, settings in sorted(study.runs().items(), key=lambda item: item[0][3]):
        folder = output.joinpath(*(part.replace("/", "-").replace(" ", "_") for part in map(str, key)))
        configs[key] = with_settings(DistillConfig(output=str(folder), step_timeout=STEP_TIMEOUT, trust=trust), settings)
    own = with_extractor(list(configs.values()), extractor)
    return {key: StudyJob.of(", ".join(map(str, key)), config) for key, config in zip(configs, own, strict=True)}


def run_study(
    study: Study,
    output: Path,
    *,
    engine: EngineConfig,
    jobs: int | None,
    note: Callable[[str], object],
    extractor: str | None = None,
    trust: bool = False,
) -> dict[Key, Found]:
    """Run the study's missing runs.

    Args:
        study: the study.
        output: folder of the runs.
        engine: where they run.
        jobs: number of runs at the same time; see ``run_jobs``.
        note: receives a line for each run that ends.
        extractor, trust: how the agents are read; see ``jobs_of``.

    Returns:
        the result of each run; a failed run has its traceback in error.txt in its folder.

    Raises:
        RequestError: before any work, if another study writes into ``output``.
    """
    requests = jobs_of(study, output, extractor=extractor, trust=trust)
    keys = {job.name: key for key, job in requests.items()}
    found: dict[Key, Found] = {}
    with locked(writable_folder(output)):
        for job, outcome in run_jobs(list(requests.values()), engine, at_a_time=jobs):
            result = found[keys[job.name]] = Found.of(outcome)
            note(f"[{len(found)}/{len(requests)}] {job.name}: {outcome.reason or format(result.retention, '.3f')}")
    return found


def interval(strata: Sequence[np.ndarray], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of the strata's means, with a stratified percentile bootstrap interval (Agarwal et al. 2021).

    Args:
        strata: one array ``[seeds]`` for each agent.
        confidence: confidence level of the interval.

    Returns:
        mean, low, high.
    """
    draws = np.random.default_rng(0)
    means = [values[draws.integers(len(values), size=(RESAMPLES, len(values)))].mean(1) for values in strata]
    return float(np.mean([values.mean() for values in strata])), *percentile_ends(np.mean(means, axis=0), confidence)


def markdown(study: Study, outcomes: Mapping[Key, Found], command: str) -> str:
    """The page: one table per group, each variant against the default on the same agents and seeds."""
    kept = {key: outcome.retention for key, outcome in outcomes.items()}
    lines = [f"# {study.title}", "", study.introduction, "", "```", command, "```", ""]
    lines += ["regenerates this page from the run folders and runs the missing runs.", ""]
    if study.base:
        lines += [f"Settings of every run: {_text_of(study.base)}.", ""]
    seeds = " | ".join(f"seed {seed}" for seed in study.seeds)
    lines += [f"| with the defaults | settings | {seeds} | mean |", f"|---|---|{'---:|' * (len(study.seeds) + 1)}"]
    for agent, own in study.agents.items():
        values = [kept.get((DEFAULT, DEFAULT, agent, seed), math.nan) for seed in study.seeds]
        known = [value for value in values if not math.isnan(value)]
        cells = ["" if math.isnan(value) else f"{value:.3f}" for value in [*values, float(np.mean(known)) if known else math.nan]]
        lines.append(f"| {agent} | {_text_of(own)} | {' | '.join(cells)} |")
    lines.append("")
    if study.groups:
        lines += [
            "In the tables below, one setting is changed at a time. Cells show the mean and standard deviation of the retention over the "
            "seeds. The last column is the mean difference to the default over agents, on the same seeds, with a 95 % bootstrap interval "
            "stratified by agent.",
            "",
        ]
    for group, content in study.groups.items():
        agents = [agent for agent in study.agents if agent in content.get("agents", study.agents)]
        lines += [f"## {group}", "", f"| | {' | '.join(agents)} | difference |", f"|---|{'---:|' * len(agents)}---:|"]
        for name in (DEFAULT, *content["variants"]):
            where = DEFAULT if name == DEFAULT else group
            lines.append(_row(name, where, agents, study.seeds, kept))
        lines += ["", *_gate_lines(group, content["variants"], agents, outcomes), " ".join(str(content.get("learned", "")).split()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _gate_lines(group: str, variants: Mapping[str, Any], agents: Sequence[str], outcomes: Mapping[Key, Found]) -> list[str]:
    """Table of the number of generations of self-distillation that were kept, if there were any."""
    rows = []
    for name in variants:
        cells = []
        for agent in agents:
            series = [found.generations for (*where, _), found in outcomes.items() if where == [group, name, agent] and found.generations]
            reached = [[gates[number] for gates in series if len(gates) > number] for number in range(max(map(len, series), default=0))]
            cells.append(", ".join(f"{sum(gates)} of {len(gates)}" for gates in reached))
        if any(cells):
            rows.append(f"| {name} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = [f"| generations kept (1st, 2nd, ...) | {' | '.join(agents)} |", f"|---|{'---|' * len(agents)}"]
    return [*head, *rows, ""]


def _text_of(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in settings.items())


def _row(name: str, group: str, agents: Sequence[str], seeds: Sequence[int], kept: Mapping[Key, float]) -> str:
    cells, differences = [], []
    for agent in agents:
        pairs = [(kept.get((group, name, agent, seed), math.nan), kept.get((DEFAULT, DEFAULT, agent, seed), math.nan)) for seed in seeds]
        values = np.array([pair for pair in pairs if not any(map(math.isnan, pair))]).reshape(-1, 2)
        if not len(values):
            cells.append("")
            continue
        missing = f" ({len(values)} seeds)" if len(values) < len(seeds) else ""
        cells.append(f"{values[:, 0].mean():.3f} ± {values[:, 0].std(ddof=1) if len(values) > 1 else 0:.3f}{missing}")
        differences.append(values[:, 0] - values[:, 1])
    if name == DEFAULT or not differences:
        return f"| {name} | {' | '.join(cells)} | |"
    mean, low, high = interval(differences)
    return f"| {name} | {' | '.join(cells)} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] |"


def with_settings(config: DistillConfig, settings: Mapping[str, Any]) -> DistillConfig:
    """``config`` with settings replaced by dotted name: ``{"loss.temperature": 2.0}``.

    Raises:
        RequestError: for an unknown name or an invalid value.
    """
    for name, value in settings.items():
        config = _replace(config, name, name.split("."), tuple(value) if isinstance(value, list) else value)
    return config


def _replace(section: Any, name: str, path: list[str], value: object) -> Any:
    head, *rest = path
    if not dataclasses.is_dataclass(section) or head not in {field.name for field in dataclasses.fields(section)}:
        raise RequestError(f"there is no setting {name!r}: see policy-distill distill_policy --help")
    return dataclasses.replace(section, **{head: _replace(getattr(section, head), name, rest, value) if rest else value})  # type: ignore[type-var]
