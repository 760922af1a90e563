"""A run as a repository for the Hugging Face Hub: a model card, the student, its exports and its certificate.

The folder has a run's layout, so that each command reads it as it reads the run. Only ``push`` needs huggingface_hub and the network.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from policy_distill.config import Fault, RequestError
from policy_distill.export.artefact import MAX_BYTES, STUDENT, check_files, is_artefact, read_manifest
from policy_distill.report import certificate_text, retention_text
from policy_distill.report.rows import mean_and_std
from policy_distill.report.verdict import verdict
from policy_distill.report.write import read_result
from policy_distill.support.files import new_folders_above, replaced_folder
from policy_distill.support.untrusted import reason, refuse_damage, sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD, EXPORTS, POLICY = "README.md", "exports", "policy.onnx"
OTHERS = ("student.zip", "certificate.json", "config.yaml", "result.json")
"""Files that a run may have, besides those of its student."""
WRITTEN = "<!-- Written by policy-distill. -->"
"""A line of the card, which tells a folder that may be replaced."""


def write_repository(run: str | Path, target: str | Path) -> list[str]:
    """Write the repository of a run into ``target``; an earlier one there is replaced.

    ``policy.onnx`` is that of the run's export in the format ``onnx``, which was checked when it was exported.

    Returns:
        Names of its files.

    Raises:
        RequestError: if ``run`` is no completed run, or ``target`` holds something else.
    """
    run, target = Path(run), Path(target)
    check(run, target)
    summary, exports = read_result(run), exports_of(run)
    with new_folders_above(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(run, target, summary, exports)
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def _write(run: Path, target: Path, summary: Mapping[str, Any], exports: list[str]) -> None:
    with replaced_folder(target) as folder:
        for name in (*STUDENT, *(name for name in OTHERS if (run / name).is_file())):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run / name, folder / name)
        for name in exports:
            shutil.copytree(run / EXPORTS / name, folder / EXPORTS / name)
        if "onnx" in exports:
            shutil.copyfile(run / EXPORTS / "onnx" / POLICY, folder / POLICY)
        with refuse_damage(run / "result.json", "it is damaged or of another version; run the job again"):
            text = card(summary, has_zip=(folder / "student.zip").is_file(), exports=exports)
        (folder / CARD).write_text(text, encoding="utf-8")


def check(run: Path, target: Path) -> None:
    """
    Raises:
        RequestError: if ``run`` is no completed run, or ``target`` holds something else than an earlier repository.
    """
    read_result(run)
    if missing := [name for name in STUDENT if not (run / name).is_file()]:
        raise RequestError(f"{run} holds no {missing[0]}: name the folder of a completed run")
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or _was_written(target))):
        raise RequestError(f"{target} exists and is no repository written by this command: choose another folder with --output")


def _was_written(folder: Path) -> bool:
    path = folder / CARD
    return path.is_file() and WRITTEN in path.read_text(encoding="utf-8", errors="replace")


def exports_of(run: Path) -> list[str]:
    """Names of the run's exports that were written from its present student.

    Raises:
        RequestError: if the files of one were changed.
    """
    weights, found = sha256(run / STUDENT[1], MAX_BYTES), []
    for path in filter(is_artefact, sorted((run / EXPORTS).glob("*"))):
        check_files(path, read_manifest(path))
        if (path / STUDENT[1]).is_file() and sha256(path / STUDENT[1], MAX_BYTES) == weights:
            found.append(path.name)
    return found


def card(summary: Mapping[str, Any], *, has_zip: bool, exports: list[str]) -> str:
    """The model card: the Hub's metadata, what the student keeps and how that was measured, and how to use it.

    Args:
        summary: contents of result.json.
        has_zip: whether Stable-Baselines3 can load ``student.zip``.
        exports: names of the exports.
    """
    env, found, certified = summary["env"], verdict(summary), summary.get("certificate")
    metadata = {
        "library_name": "stable-baselines3" if has_zip else "policy-distill",
        "pipeline_tag": "reinforcement-learning",
        "tags": [env, "reinforcement-learning", "deep-reinforcement-learning", "policy-distillation", *(["onnx"] if exports else [])],
        "model-index": [{"name": f"{summary['teacher']['algo'] or 'policy'} student", "results": [_result(summary)]}],
    }
    rows = [
        ("student", f"{mean_and_std(summary['student'])}, {summary['student']['params']:,} parameters"),
        ("teacher", f"{mean_and_std(summary['teacher'])}, {summary['teacher']['params']:,} parameters"),
        ("random policy", mean_and_std(summary["random"])),
        ("retention", retention_text(summary["retention"])),
        ("certificate", certificate_text(certified) if certified else "none"),
    ]
    figures = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}
---
{WRITTEN}

# A small policy for {env}

{found.headline} {found.meaning} {found.trust}

| | return, mean ± standard deviation |
|---|---|
{figures}

Retention is (student - random) / (teacher - random), with a {summary["retention"]["confidence"]:.0%} interval.

{_usage(env, has_zip, exports)}"""


def _result(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The measured return in the form of the Hub's model index, with the value as the RL Zoo writes it."""
    student, env = summary["student"], summary["env"]
    value = f"{student['return_mean']:.2f} +/- {student['return_std']:.2f}"
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env, "type": env},
        "metrics": [{"type": "mean_reward", "value": value, "name": "mean_reward", "verified": False}],
    }


def _usage(env: str, has_zip: bool, exports: list[str]) -> str:
    parts = [
        """## Use it

Download the repository, then measure it or act with it:

```
hf download USER/NAME --local-dir student
policy-distill evaluate_policy --policy student
```

```python
from policy_distill.policies.student import Student

student = Student.load("student/student")
actions = student.act(observations)  # raw observations [B, ...]; with a memory or a history: student.step
```
"""
    ]
    if has_zip:
        parts.append("""With Stable-Baselines3 alone:

```python
from stable_baselines3 import PPO

action, _ = PPO.load("student/student.zip").predict(observation, deterministic=True)
```
""")
    if "onnx" in exports:
        parts.append("""With onnxruntime alone; the file's metadata describe its inputs and outputs:

```python
import onnxruntime

session = onnxruntime.InferenceSession("student/policy.onnx")
action, outputs, *state = session.run(None, {"observation": observations})
```
""")
    if exports:
        parts.append(f"Checked exports, each a policy for `--policy student/exports/NAME`: {', '.join(exports)}.\n")
    return "\n".join(parts)


def api_for(repository: str) -> HfApi:
    """The Hub's interface.

    Raises:
        RequestError: if huggingface_hub is not installed, or ``repository`` is no ``USER/NAME``.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise RequestError("push needs huggingface_hub: pip install 'policy-distill[hub]'") from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RequestError(f"push is {repository!r}, which is no USER/NAME of the Hub: {error}") from error
    return HfApi()


def push(api: HfApi, folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a repository, which is made if necessary; files of an earlier upload stay if they are not replaced.

    Returns:
        Its address.

    Raises:
        Fault: if the Hub cannot be reached or refuses it.
    """
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Student distilled by policy-distill")
    except Exception as error:  # of the client, or of its HTTP library
        fix = "check the network and hf auth login, then push again"
        raise Fault(f"{folder} is written, but not uploaded ({reason(error)}): {fix}") from error
    return str(url)
