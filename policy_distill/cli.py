"""The commands. ``policy-distill COMMAND`` and ``python scripts/COMMAND.py`` are the same."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console
from rich.table import Table

from policy_distill.config import DistillConfig, EvaluateConfig, RequestError
from policy_distill.progress import Display

set_parsing_settings(docstring_parse_attribute_docstrings=True)
DONE, FAILED, WRONG_REQUEST = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_commands()
        return DONE if arguments else WRONG_REQUEST
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise RequestError(f"no command {name!r}{_nearest(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except RequestError as error:
        print(f"policy-distill: {_one_line(str(error))}", file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("policy-distill: interrupted", file=sys.stderr)
        return FAILED
    except Exception as error:  # a failure of ours: the whole story, then one line
        traceback.print_exc()
        print(f"policy-distill: {name} failed: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        return FAILED


def distill_policy(arguments: Sequence[str]) -> int:
    """Distil a teacher into a small student and measure what it kept."""
    parser = _Parser("distill_policy", distill_policy.__doc__)
    parser.add_class_arguments(DistillConfig)
    _add_zoo_folder(parser)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    config = _with_zoo_teacher(parser.config(options, DistillConfig), options.folder)
    from policy_distill.distill import distill
    from policy_distill.report import summary_rows

    result = distill(config, display=Display(quiet=options.json))
    _finish(options.json, result.summary, summary_rows(result.summary), str(result.folder))
    return DONE


def evaluate_policy(arguments: Sequence[str]) -> int:
    """Measure the return of a student, an SB3 zip or an RL Zoo folder, beside a random policy's and, if named, its teacher's."""
    parser = _Parser("evaluate_policy", evaluate_policy.__doc__)
    parser.add_argument("--policy", type=str, required=True, help="student folder, run folder, SB3 zip, RL Zoo folder or shipped agent")
    parser.add_argument("--teacher", type=str | None, default=None, help="measured on the same seeds; gives the retention")
    parser.add_argument("--env", type=str | None, default=None, help="Gymnasium id or entry of envs/; default: the policy's own")
    parser.add_argument("--episodes", type=int, default=100, help="one seed each")
    parser.add_argument("--num_envs", type=int, default=16, help="episodes side by side; the returns do not depend on it")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the retention's interval")
    parser.add_argument("--workers", type=int | None, default=None, help="processes; default: one a core")
    parser.add_argument("--trust", type=bool, default=False, help="let SB3 unpickle a custom policy; runs code from the file")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    protocol = EvaluateConfig(episodes=options.episodes, num_envs=options.num_envs, confidence=options.confidence)
    DistillConfig(workers=options.workers, evaluate=protocol)  # checks them
    from policy_distill.measure import measure

    report = measure(
        options.policy,
        teacher=options.teacher,
        env=options.env,
        episodes=options.episodes,
        num_envs=options.num_envs,
        confidence=options.confidence,
        workers=options.workers,
        trust=options.trust,
        display=Display(quiet=options.json),
    )
    _finish(options.json, report.summary(), report.rows())
    return DONE


def check_teacher(arguments: Sequence[str]) -> int:
    """Say what an agent is, and whether its return here is what its folder claims."""
    parser = _Parser("check_teacher", check_teacher.__doc__)
    parser.add_argument("--teacher", type=str, default="", help="RL Zoo folder, SB3 zip or shipped agent")
    parser.add_argument("--env", type=str | None, default=None, help="Gymnasium id or entry of envs/; default: the agent's own")
    parser.add_argument("--algo", type=str | None, default=None, help="of a bare zip that does not tell")
    parser.add_argument("--episodes", type=int, default=20, help="0 only reads the files")
    parser.add_argument("--workers", type=int | None, default=None, help="processes; default: one a core")
    parser.add_argument("--trust", type=bool, default=False, help="let SB3 unpickle a custom policy; runs code from the file")
    _add_zoo_folder(parser)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.episodes:
        DistillConfig(workers=options.workers, evaluate=EvaluateConfig(episodes=options.episodes))  # checks them
    from policy_distill import check
    from policy_distill.environments import check_fits
    from policy_distill.job import environment_for, one_torch_thread
    from policy_distill.teachers import Teacher

    teacher = Teacher.load(_zoo_path(options.teacher, options.folder, options.algo, options.env), algo=options.algo, trust=options.trust)
    rows = [(name.replace("_", " "), _text(value)) for name, value in teacher.describe().items()]
    summary: dict[str, Any] = {"facts": teacher.describe()}
    if options.episodes:
        spec, notices = environment_for(teacher, options.env)
        check_fits(spec, (teacher.observation_space, teacher.action_space))
        for notice in notices:
            Display(quiet=options.json).note(f"note: {notice}")
        with one_torch_thread():
            found = check.check_teacher(teacher, spec, episodes=options.episodes, workers=options.workers)
        returns = found.episodes.returns
        rows += [
            ("environment here", spec.id),
            ("return here", f"{returns.mean():.1f} ± {returns.std(ddof=1):.1f} over {len(returns)} episodes"),
            ("random policy's return", f"{found.random_episodes.returns.mean():.1f} ± {found.random_episodes.returns.std(ddof=1):.1f}"),
        ]
        if found.claim:
            rows.append(("claimed return", f"{found.claim.mean:.1f} ± {found.claim.std:.1f} ({found.claim.source})"))
        rows.append(("verdict", found.verdict))
        summary |= {
            "env": spec.id,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std(ddof=1)),
            "random_return_mean": float(found.random_episodes.returns.mean()),
            "claim": dataclasses.asdict(found.claim) if found.claim else None,
            "verdict": found.verdict,
            "notices": list(notices),
        }
    _finish(options.json, summary, rows)
    return DONE


def train_teacher(arguments: Sequence[str]) -> int:
    """Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml."""
    from policy_distill.teachers.recipes import TrainTeacherConfig, train_teacher

    parser = _Parser("train_teacher", "Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml.")
    parser.add_class_arguments(TrainTeacherConfig)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    trained = train_teacher(parser.config(options, TrainTeacherConfig), Display(quiet=options.json).note)
    rows = [
        ("agent", str(trained.path)),
        ("return", f"{trained.mean:.1f} ± {trained.std:.1f} over {trained.episodes} episodes"),
        ("environment steps", f"{trained.steps:,}"),
    ]
    _finish(options.json, {name: _plain(value) for name, value in dataclasses.asdict(trained).items()}, rows, str(trained.path))
    return DONE


def run_suite(arguments: Sequence[str]) -> int:
    """Distil every teacher below a folder with the same settings, and say what they kept as a whole."""
    parser = _Parser("run_suite", run_suite.__doc__)
    parser.add_argument("--teachers", type=str, required=True, help="folder that holds ALGO/ENV_RUN/ENV.zip")
    parser.add_class_arguments(DistillConfig, skip={"teacher", "output"})
    parser.add_argument("--output", type=str, default="runs/suite", help="folder of the tables and of each teacher's run")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    config = parser.config(options, DistillConfig)
    from policy_distill import suite
    from policy_distill.job import writable_folder

    output = writable_folder(Path(options.output))
    result = suite.run_suite(Path(options.teachers), config, output=output, display=Display(quiet=options.json))
    if options.json:
        print(json.dumps({"rows": result.rows, "interquartile_mean": result.interquartile_mean}, indent=2))
        return DONE
    table = Table(box=None, pad_edge=False)
    for title, justify in (("teacher", "left"), ("student", "left"), ("smaller", "right"), ("retention", "left"), ("s", "right")):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in result.rows:
        if row["status"] != "done":
            table.add_row(row["teacher"], row["status"], "", row["reason"], "")
            continue
        kept = "undefined" if row["retention"] is None else f"{row['retention']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(row["teacher"], row["student"], f"{row['compression']:.1f}x", kept, f"{row['seconds']:.0f}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    if result.interquartile_mean is not None:
        console.print(f"interquartile mean of retention: {result.interquartile_mean:.3f}")
    console.print(f"\n{result.folder}", soft_wrap=True)
    return DONE


def run_ablation(arguments: Sequence[str]) -> int:
    """Compare the defaults with their alternatives over agents and seeds, and write the page."""
    parser = _Parser("run_ablation", run_ablation.__doc__)
    parser.add_argument("--study", type=str, default="docs/ablation.yaml", help="what is compared: base, agents, groups, seeds")
    parser.add_argument("--output", type=str, default="runs/ablation", help="folder of the runs; what is done there is not run again")
    parser.add_argument("--page", type=str, default="docs/ablation.md", help="the page that is written")
    parser.add_argument("--jobs", type=int | None, default=None, help="runs side by side; default: one a core")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    from policy_distill import ablation
    from policy_distill.files import write_atomically
    from policy_distill.job import writable_folder
    from policy_distill.workers import available_cores

    study = ablation.Study.load(Path(options.study))
    output = writable_folder(Path(options.output))
    kept = ablation.run_study(study, output, jobs=options.jobs or available_cores(), note=Display(quiet=options.json).note)
    command = f"policy-distill run_ablation --study {options.study} --output {options.output} --page {options.page}"
    page = Path(options.page)
    write_atomically(page, lambda target: target.write_text(ablation.markdown(study, kept, command)))
    if options.json:
        print(json.dumps({"/".join(map(str, key)): _plain(value) for key, value in kept.items()}, indent=2))
    else:
        print(page)
    return DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "distill_policy": distill_policy,
    "train_teacher": train_teacher,
    "evaluate_policy": evaluate_policy,
    "check_teacher": check_teacher,
    "run_suite": run_suite,
    "run_ablation": run_ablation,
}


class _Parser(ArgumentParser):
    """jsonargparse, with errors of one line."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"policy-distill {command}", description=description, exit_on_error=False, allow_abbrev=False)
        self.add_argument("--config", action="config", help="YAML file with any of the options below")

    def add_display_arguments(self) -> None:
        self.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
        self.add_argument(
            "-P", "--progress", action="store_true", help="accepted for the RL Zoo's sake; progress is always shown in a terminal"
        )

    def parse(self, arguments: Sequence[str]) -> Namespace:
        try:
            return self.parse_args(_spelled_out(arguments))
        except SystemExit as end:  # --help and --print_config end here
            if end.code in (0, None):
                raise
            raise RequestError("the command line could not be read: see --help") from None
        except RequestError:
            raise
        except Exception as error:  # jsonargparse raises several kinds; all mean that the request was wrong
            raise RequestError(self._explain(str(error))) from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise RequestError(self._explain(message)) from ex

    def config(self, options: Namespace, kind: type[Any]) -> Any:
        """Build the dataclass whose fields are among the options."""
        built = self.instantiate(options)
        return kind(**{field.name: built[field.name] for field in dataclasses.fields(kind) if field.name in built})

    def _explain(self, message: str) -> str:
        """Make jsonargparse's message one line, and name the nearest option of one that does not exist."""
        message = _one_line(message)
        known = [action.dest for action in self._actions]
        unknown = re.search(r"unrecognized arguments?: '?(?:--)?([\w.]+)|[Oo]ption '([\w.]+)' is not accepted|Key '([\w.]+)'", message)
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        if unknown or nested:
            key = ".".join(nested.groups()) if nested else next(group for group in unknown.groups() if group)  # type: ignore[union-attr]
            if key not in known:
                return f"no option {key!r}{_nearest(key, known)}; see --help"
        wrong = re.search(r"[Kk]ey \"([\w.]+)\": Expected an? (.*)\. Got value: (.*)", message)
        if wrong:
            kind = re.sub(r"<class '(\w+)'>|typing\.Literal", lambda match: match[1] or "one of ", wrong[2])
            return f"{wrong[1]} is {wrong[3]!r}; it must be {kind}"
        return message


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--trust`` alone means ``--trust true``, and ``--student same`` means ``--student.same true``."""
    spelled: list[str] = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument == "--trust" and following not in ("true", "false"):
            spelled.append("--trust=true")
        elif argument == "same" and spelled and spelled[-1] == "--student":
            spelled[-1] = "--student.same=true"
        else:
            spelled.append("--student.same=true" if argument == "--student=same" else argument)
    return spelled


def _add_zoo_folder(parser: _Parser) -> None:
    parser.add_argument("-f", "--folder", type=str | None, default=None, help="with --algo and --env: the RL Zoo's folder of agents")


def _with_zoo_teacher(config: DistillConfig, folder: str | None) -> DistillConfig:
    """``--algo ppo --env LunarLander-v3 -f FOLDER`` names the teacher as the RL Zoo's commands do."""
    path = _zoo_path(config.teacher, folder, config.algo, config.env)
    if path == config.teacher:
        return config
    return dataclasses.replace(config, teacher=path, env=None)


def _zoo_path(teacher: str, folder: str | None, algo: str | None, env: str | None) -> str:
    if teacher:
        return teacher
    if not (algo and env):
        raise RequestError("no teacher was named: give --teacher PATH_OR_NAME, or --algo and --env (and -f FOLDER) as for the RL Zoo")
    if folder is None:
        return f"{algo}/{env}"
    runs = sorted(Path(folder, algo).glob(f"{env}_*"), key=lambda path: (len(path.name), path.name))
    if not runs:
        raise RequestError(f"no run {algo}/{env}_N in {folder}: look at what the folder holds")
    return str(runs[-1])


def _finish(as_json: bool, summary: Any, rows: Sequence[tuple[str, str]], folder: str | None = None) -> None:
    """Print the closing table and the folder, or the JSON alone."""
    if as_json:
        print(json.dumps(_plain(summary), indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    if folder:
        console.print(f"\n{folder}", soft_wrap=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case np.ndarray():
            return _plain(value.tolist())
        case np.generic():
            return _plain(value.item())
        case float():
            return value if np.isfinite(value) else None
        case str() | int() | bool() | None:
            return value
    return str(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _print_commands() -> None:
    print("usage: policy-distill COMMAND [options]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<16} {(command.__doc__ or '').splitlines()[0]}")
    print("\npolicy-distill COMMAND --help shows a command's options.")
