"""Search for an agent's VecNormalize statistics, beside its zip or in its settings folder, under any name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym

from policy_distill.config import RequestError
from policy_distill.support.trees import of_space
from policy_distill.support.untrusted import read_bytes, refuse_damage
from policy_distill.teachers.files.archive import read_data
from policy_distill.teachers.files.normalization import Statistics, for_observations, read_normalization, read_observation_count, shape_of
from policy_distill.teachers.files.saved_spaces import rebuild_space
from policy_distill.teachers.files.training_record import read_training_record

NORMALIZE = re.compile(r"(?:^|[_-])vec_?norm(?:alize)?(?:_stats)?(?=$|[_-])", re.IGNORECASE)
"""Pattern of the usual names: ``vecnormalize``, ``vec_normalize``, ``NAME_vecnorm``, ``rl_model_vecnormalize_900_steps``."""
SUFFIXES = (".pkl", ".pickle")
MAX_UNNAMED_BYTES = 16 << 20
"""Maximum size of a pickle that is read although its name does not match; replay buffers are larger."""
MAX_FILES = 500


@dataclass(frozen=True)
class Choice:
    """The chosen file, or None, and notes for the user."""

    path: Path | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    path: Path
    statistics: Statistics | None
    """None if observations are not normalised or the file cannot be read, which is reported if it is chosen."""

    def fits(self, space: gym.Space | None) -> bool:
        """Whether these can be the statistics of observations of ``space``, or of each of the frames that are stacked in them."""
        return self.statistics is None or space is None or for_observations(self.statistics, space) is not None


def choose_statistics(zip_path: Path, settings: Sequence[Path]) -> Choice:
    """Find the statistics of the agent in ``zip_path``.

    Looked for, in this order: a file that bears the zip's own name (``NAME_vecnormalize.pkl``, a checkpoint's), files in ``settings``,
    other files beside the zip. Where the zip is a symbolic link, beside it is beside the link and beside its target. Of several files in
    one place the one counts whose observations have the agent's shape; of several such files, the one with as many observations as the
    agent's training, and that of no other zip beside it, had steps. A file that bears the name of another zip is that agent's.

    Args:
        zip_path: the agent.
        settings: folders that belong to this agent alone, such as the RL Zoo's ``ENV/``.

    Raises:
        RequestError: if several different files fit, or a file that is named after VecNormalize does not.
    """
    stems = {zip_path.stem, zip_path.resolve().stem}
    folders = _distinct_folders([zip_path.absolute().parent, zip_path.resolve().parent])
    zips = [path for folder in folders for path in sorted(folder.glob("*.zip"))]
    other_stems = {path.stem for path in zips} - stems
    beside = [path for folder in folders for path in _pickles(folder)]
    own = [path for path in beside if _owner(path) in stems]
    others = [path for path in beside if _owner(path) in other_stems]
    shared = [path for path in beside if path not in own and path not in others]
    in_settings = [path for folder in _distinct_folders(settings) if folder not in folders for path in _pickles(folder)]
    if not (own or in_settings or shared):
        return Choice(None, tuple(f"{path.name} bears the name of another agent and is not used" for path in others if _is_saved(path)))

    space = observation_space(zip_path)
    notes: list[str] = []
    rejected: list[_Candidate] = []
    for place in (own, in_settings, shared):
        candidates = _candidates(place)
        fitting = _with_different_contents(candidate for candidate in candidates if candidate.fits(space))
        rejected += [candidate for candidate in candidates if not candidate.fits(space)]
        if fitting and place is shared and read_training_record(zip_path).inside_vec_normalize is False:
            notes.append(
                f"{fitting[0].path.name} beside the zip is not used: the zip remembers that it was trained without VecNormalize "
                f"(--normalization {fitting[0].path} uses it)"
            )
            return Choice(None, tuple(notes))
        if len(fitting) > 1:
            fitting = _as_old_as(zip_path, fitting, zips) or fitting
        if len(fitting) > 1:
            listed = ", ".join(str(candidate.path) for candidate in fitting)
            raise RequestError(f"{zip_path}: several files of normalisation statistics fit it: {listed}; choose one: --normalization PATH")
        if fitting:
            return Choice(fitting[0].path)
    _refuse_misfits(zip_path, space, rejected)
    return Choice(None, tuple(f"{candidate.path.name} holds statistics of another shape and is not used" for candidate in rejected))


def _as_old_as(zip_path: Path, candidates: Sequence[_Candidate], zips: Sequence[Path]) -> list[_Candidate]:
    """Those candidates that count as many observations as this agent's training had steps, and as that of none of the other ``zips`` had.

    Equal numbers alone are no proof, as runs of one script have the same.
    """
    if len(zips) > MAX_FILES:
        return []
    own, others = _counts(zip_path), [_counts(path) for path in zips if path.resolve() != zip_path.resolve()]
    chosen = []
    for candidate in candidates:
        if candidate.statistics is not None:
            count = read_observation_count(candidate.path)
            if count in own and not any(count in other for other in others):
                chosen.append(candidate)
    return chosen


def _counts(zip_path: Path) -> range:
    """Numbers of observations that VecNormalize may count until an agent is saved; none if the zip does not tell.

    It counts one for each step, and in newer versions one for each environment that is reset at the start.
    """
    try:
        data = read_data(zip_path)
    except RequestError:
        return range(0)
    steps, environments = data.get("num_timesteps"), data.get("n_envs")
    if not (isinstance(steps, int) and isinstance(environments, int) and steps > 0):
        return range(0)
    return range(steps, steps + environments + 1)


def observation_space(zip_path: Path) -> gym.Space | None:
    """The space that the zip names; None if it does not tell, or it is one that is not supported."""
    try:
        with refuse_damage(zip_path, "it is passed over"):
            return rebuild_space(read_data(zip_path)["observation_space"], role="observation", source=str(zip_path))
    except RequestError:
        return None  # reading the agent itself will say what is wrong


def _refuse_misfits(zip_path: Path, space: gym.Space | None, rejected: Sequence[_Candidate]) -> None:
    """Statistics that may be meant for this agent, or that it cannot do without, must fit."""
    if not rejected:
        return
    inside = read_training_record(zip_path).inside_vec_normalize
    named = any(NORMALIZE.search(candidate.path.stem) for candidate in rejected)
    if inside or (named and inside is None):
        listed = ", ".join(f"{one.path} {None if one.statistics is None else shape_of(one.statistics)}" for one in rejected)
        shape = None if space is None else of_space(space, lambda part: part.shape)
        raise RequestError(
            f"{zip_path} reads observations of shape {shape}, but these statistics are another agent's, of another shape: {listed}; "
            "give its own with --normalization PATH, or --normalization none if it was trained on observations as they are"
        )


def _owner(path: Path) -> str:
    """The name of the zip that a file of statistics belongs to by its own name; empty for ``vecnormalize.pkl``."""
    return NORMALIZE.sub("", path.stem, count=1).strip("_-")


def _pickles(folder: Path) -> list[Path]:
    """Files of ``folder`` that may hold statistics, in the order of their names; none where it cannot be listed."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    found = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES or (not path.suffix and NORMALIZE.search(path.name))]
    return [path for path in found[:MAX_FILES] if path.is_file()]


def _candidates(paths: Iterable[Path]) -> list[_Candidate]:
    """Those files that hold statistics by their contents, or should by their name."""
    found = []
    for path in paths:
        named = NORMALIZE.search(path.stem)
        if not named and not _is_saved(path):
            continue
        try:
            normalization = read_normalization(path)
        except RequestError:
            if named:
                found.append(_Candidate(path, None))
            continue
        found.append(_Candidate(path, normalization))
    return found


def _is_saved(path: Path) -> bool:
    """Whether the file looks like a saved VecNormalize, which costs one reading of its bytes."""
    try:
        with refuse_damage(path, "it is passed over"):
            return b"norm_obs" in read_bytes(path, MAX_UNNAMED_BYTES)
    except RequestError:
        return False


def _with_different_contents(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """One of each group of files with the same bytes."""
    first: dict[bytes, _Candidate] = {}
    for candidate in candidates:
        comparable = os.access(candidate.path, os.R_OK) and candidate.path.stat().st_size <= MAX_UNNAMED_BYTES
        first.setdefault(read_bytes(candidate.path, MAX_UNNAMED_BYTES) if comparable else bytes(candidate.path.resolve()), candidate)
    return list(first.values())


def _distinct_folders(folders: Iterable[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in reversed(list(folders))}.values())[::-1]
