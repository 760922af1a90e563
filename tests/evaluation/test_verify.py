"""Does a certificate hold? An honest one does; each way of changing one is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import Reading, RequestError
from policy_distill.evaluation import verify as module
from policy_distill.evaluation.certify import place_of, read_certificate
from policy_distill.evaluation.measure import certify
from policy_distill.evaluation.probe import Probe
from policy_distill.evaluation.statistics import Plan, decide
from policy_distill.evaluation.verify import Verification, verify
from policy_distill.export.sb3 import save_ppo
from tests.small_worlds import WALK, walk_expert


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    walk_expert().save(folder / "student", extra={"environment": WALK.to_dict()})
    save_ppo(walk_expert(), folder / "ppo.zip")
    certify(str(folder / "student"), teacher=str(folder / "ppo.zip"), plan=Plan.of(0.9, max_episodes=300), output=str(folder), workers=0)
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy elsewhere: what belongs together may be moved together."""
    return Path(shutil.copytree(original, tmp_path / "moved"))


def verified(folder: Path, **options: Any) -> Verification:
    return verify(folder / "certificate.json", workers=0, **options)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "certificate.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_an_honest_one_holds(folder):
    found = verified(folder)
    assert found.holds, found.objections
    assert found.notes == []
    assert found.replayed == len(read_certificate(folder / "certificate.json")["seeds"])
    assert dict(found.rows())["holds"] == "yes"
    assert found.summary()["holds"] is True
    assert found.summary()["notices"] == found.summary()["notes"] == []


def test_a_part_of_the_episodes_may_do(folder):
    assert verified(folder, episodes=7).replayed == 7
    assert verified(folder, episodes=0).replayed == 0


def test_other_weights_are_found(folder):
    student = walk_expert()
    student.linears[0].bias.add_(1e-3)
    student.save(folder / "student", extra={"environment": WALK.to_dict()})
    (objection,) = verified(folder).objections
    assert objection == "the student is not the one that was certified: student.safetensors, student.json differ"


def test_another_teacher_is_found(folder):
    other = walk_expert()
    other.linears[0].bias.add_(1e-3)
    save_ppo(other, folder / "ppo.zip")
    (objection,) = verified(folder).objections
    assert "the teacher is not the one that was certified: ppo.zip differs" in objection


def better(data: dict[str, Any]) -> None:
    data["returns"]["student"] = [value + 1e-6 for value in data["returns"]["student"]]


def one_return(data: dict[str, Any]) -> None:
    data["returns"]["random"][0] += 1e-9


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "verdict": (lambda data: data.update(verdict="refuted"), "the returns give: certified after"),
    "share": (lambda data: data.update(share=0.99), "the returns give"),
    "confidence": (lambda data: data.update(confidence=0.6), "the looks or boundaries are not"),
    "boundaries": (lambda data: data["test"]["boundaries"].__setitem__(-1, 0.1), "the looks or boundaries are not"),
    "better student": (better, "the statistics are not those of the returns"),
    "statistics": (lambda data: data["test"]["seen"][-1].update(keeps=99.0), "the statistics are not"),
    "looks": (lambda data: data["test"]["seen"].pop(), "the statistics are not"),
    "seeds": (lambda data: data.update(seeds=[seed + 1 for seed in data["seeds"]]), "they may have been chosen"),
    "cut": (lambda data: [data["returns"][role].pop() for role in data["returns"]], "not one return of each policy"),
    "nan": (lambda data: data["returns"]["student"].__setitem__(3, None), "cannot be computed"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_was_changed_by_hand_is_found(name, folder):
    edit, expected = FORGED[name]
    change(folder, edit)
    found = verified(folder, episodes=0)
    assert any(expected in objection for objection in found.objections), found.objections
    assert not found.holds


def test_a_test_that_was_left_before_it_was_decided_is_found(folder):
    """Whoever stops when it looks well, and calls it undecided, has not carried out the test."""

    def leave(data: dict[str, Any]) -> None:
        for role in data["returns"]:
            data["returns"][role] = data["returns"][role][:50]
        data.update(seeds=data["seeds"][:50], episodes=50, verdict="undecided")
        data["test"]["seen"] = data["test"]["seen"][:1]

    change(folder, leave)
    (objection,) = verified(folder, episodes=0).objections
    assert "before it was decided" in objection


def test_a_return_that_differs_by_a_billionth_is_found_by_playing_again(folder):
    change(folder, one_return)
    (objection,) = verified(folder, episodes=3).objections
    assert objection.startswith("1 of the random's 3 returns differ, by up to 1e-09, on the same versions")


def test_other_versions_are_named_and_may_explain_it(folder):
    change(folder, one_return)
    change(folder, lambda data: data["versions"].update(torch="1.0"))
    found = verified(folder)
    assert found.holds
    assert any("torch 1.0 (here " in note for note in found.notes)
    assert any("which the versions may explain" in note for note in found.notes)


def test_other_versions_do_not_explain_another_verdict(folder, monkeypatch):
    change(folder, lambda data: data["versions"].update(torch="1.0"))
    monkeypatch.setattr(module, "load_policy", lambda path, trust: (Backwards(walk_expert()), WALK))
    monkeypatch.setattr(module, "_check_files", lambda *_: None)
    monkeypatch.setattr(module, "files_of", lambda *_: {"sha256": {}})
    found = verified(folder)
    assert any("the returns here give: refuted" in objection for objection in found.objections)


def noisy(data: dict[str, Any], spread: float, shift: float = 0.0) -> None:
    """A student whose returns differ in each episode, in a certificate whose test is that of its returns."""
    draws = np.random.default_rng(0)
    returns = {role: np.array(values) for role, values in data["returns"].items()}
    returns["student"] = returns["student"] + draws.normal(shift, spread, len(returns["student"]))
    decision = decide(*returns.values(), plan=Plan.of(data["share"], data["confidence"], data["max_episodes"]))
    count = decision.episodes
    data["returns"] = {role: values[:count].tolist() for role, values in returns.items()}
    data.update(seeds=data["seeds"][:count], episodes=count, verdict=decision.verdict)
    data["test"]["seen"] = [dataclasses.asdict(look) for look in decision.looks]


def elsewhere(data: dict[str, Any]) -> None:
    """Written where numbers are rounded differently."""
    data["versions"]["rounding"] = "0123456789abcdef"
    data["kernels"] = {"processor": "Another CPU", "numpy": "openblas"}


def test_where_rounding_differs_returns_may_differ_if_means_and_verdict_agree(folder):
    change(folder, lambda data: noisy(data, 0.5))
    assert "on the same versions" in verified(folder).objections[0]
    change(folder, elsewhere)
    found = verified(folder)
    assert found.holds, found.objections
    assert any("rounded differently, on Another CPU, openblas; here on " in note for note in found.notes)
    assert any("compared are the means and the verdict" in note for note in found.notes)


@pytest.mark.parametrize("episodes", [None, 60])
def test_no_rounding_explains_another_mean(folder, episodes):
    change(folder, lambda data: noisy(data, 0.3, shift=0.3))
    change(folder, elsewhere)
    (objection,) = verified(folder, episodes=episodes).objections
    assert "the student's mean return over" in objection
    assert "chance and rounding do not explain that" in objection


def test_tiny_differences_to_one_side_are_rounding(folder):
    change(folder, lambda data: noisy(data, 1e-7, shift=1e-6))
    change(folder, elsewhere)
    assert verified(folder).holds


def test_a_test_that_is_open_here_is_played_on(folder):
    """By chance the returns there decided earlier; the next looks come to the same."""

    def earlier(data: dict[str, Any]) -> None:
        noisy(data, 0.0)
        data["returns"]["student"] = [-1.0] * len(data["seeds"])  # better than it is: decided at the first looks
        noisy(data, 0.0)
        elsewhere(data)

    whole = len(read_certificate(folder / "certificate.json")["seeds"])
    change(folder, earlier)
    recorded = len(read_certificate(folder / "certificate.json")["seeds"])
    assert recorded < whole
    found = verified(folder)
    assert found.replayed == whole
    assert any(f"the same verdict after {whole} episodes" in note for note in found.notes)


def test_certificates_without_the_rounding_are_read(folder):
    """Those that were written before it was known."""
    change(folder, lambda data: noisy(data, 0.5))
    change(folder, lambda data: (data["versions"].pop("rounding"), data.pop("kernels")))
    found = verified(folder)
    assert found.holds, found.objections
    assert not any("rounded differently" in note for note in found.notes)


class Backwards:
    """Does the opposite."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.observation_space, self.action_space = policy.observation_space, policy.action_space

    def act(self, observations: Any) -> Any:
        return 2 - self.policy.act(observations)


def test_files_that_moved_apart_are_named(folder, tmp_path):
    shutil.move(folder / "student", tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="give its path with --policy"):
        verified(folder)
    assert verified(folder, policy=str(tmp_path / "elsewhere"), episodes=2).holds


def test_a_teacher_without_files_must_be_named_to_be_played(folder):
    change(folder, lambda data: data["teacher"].update(path=None))
    with pytest.raises(RequestError, match="give --teacher, or --episodes 0"):
        verified(folder)
    found = verified(folder, episodes=0)
    assert found.holds
    assert "were not checked" in found.notes[0]
    assert verified(folder, teacher=str(folder / "ppo.zip"), episodes=2).holds


def test_what_is_no_certificate_is_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_certificate(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        read_certificate(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RequestError, match="is no certificate"):
        read_certificate(tmp_path / "other.json")
    change(folder, lambda data: data["teacher"].update(reading=["ppo"]))
    with pytest.raises(RequestError, match="how the teacher was read is not as it was written"):
        verified(folder)
    change(folder, lambda data: data["teacher"].pop("reading"))
    change(folder, lambda data: data.pop("returns"))
    with pytest.raises(RequestError, match="lacks 'returns'"):
        verified(folder)
    change(folder, lambda data: data.update(format=2))
    with pytest.raises(RequestError, match="is of format 2"):
        verified(folder)


def without(data: dict[str, Any], name: str) -> None:
    *outer, last = name.split(".")
    for key in outer:
        data = data[key]
    data.pop(last)


@pytest.mark.parametrize("name", ["claim", "seeds", "environment.id", "student.path", "teacher.sha256", "test.seen"])
def test_what_was_cut_is_named(name, folder):
    """A missing hash ended in a traceback, with the exit code of a certificate that does not hold."""
    change(folder, lambda data: without(data, name))
    with pytest.raises(RequestError, match=f"is no certificate|lacks '{name}'"):
        verified(folder)


@pytest.mark.parametrize(("name", "value"), [("seeds", 7), ("share", "much"), ("student", "mine"), ("returns", [1.0])])
def test_what_is_of_another_type_is_named(name, value, folder):
    change(folder, lambda data: data.update({name: value}))
    with pytest.raises(RequestError, match=f"lacks '{name}', or holds something else there"):
        verified(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["returns"].update(random=["a"] * len(data["seeds"])),
        lambda data: data["test"]["boundaries"].pop(),
        lambda data: data["test"].update(seen=[{}] * len(data["test"]["seen"])),
        lambda data: data["test"]["seen"][-1].update(keeps="much"),
        lambda data: data.update(share=-1.0),
    ],
)
def test_numbers_that_are_none_are_an_objection(edit, folder):
    change(folder, edit)
    (objection,) = verified(folder, episodes=0).objections
    assert objection.startswith("the test cannot be computed")


def test_other_versions_are_named_where_nothing_is_played(folder):
    """The arithmetic of an older version may be another: whoever reads the objection must know of the versions."""
    change(folder, lambda data: data["versions"].update({"policy-distill": "0.0.1"}))
    change(folder, lambda data: data["test"]["looks"].pop())
    found = verified(folder)
    assert found.replayed == 0
    assert "policy-distill 0.0.1 (here " in found.notes[0]
    assert "looks or boundaries" in found.objections[0]


def test_the_folder_stands_for_the_file(folder):
    assert place_of(str(folder)) == folder / "certificate.json" == place_of(str(folder / "certificate.json"))


def statistics(path: Path) -> Path:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([lambda: gym.make(WALK.id)]))
    env.reset()
    for _ in range(20):
        env.step(np.array([0]))
    path.parent.mkdir(exist_ok=True)
    env.save(str(path))
    return path


def test_a_teacher_is_read_as_it_was_when_it_was_certified(tmp_path):
    """Its statistics were named; verification needs no option, and finds when they are others."""
    walk_expert().save(tmp_path / "student", extra={"environment": WALK.to_dict()})
    save_ppo(walk_expert(), tmp_path / "ppo.zip")
    named = statistics(tmp_path / "elsewhere" / "mine.pkl")
    certify(
        str(tmp_path / "student"), teacher=str(tmp_path / "ppo.zip"), teacher_reading=Reading(normalization=str(named)),
        plan=Plan.of(0.9, max_episodes=120), output=str(tmp_path), workers=0,
    )  # fmt: skip
    written = read_certificate(tmp_path / "certificate.json")["teacher"]
    assert written["reading"] == {"normalization": "elsewhere/mine.pkl"}
    assert set(written["sha256"]) == {"ppo.zip", "mine.pkl"}
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    found = verified(moved, episodes=6)
    assert found.holds, found.objections
    assert any("mine.pkl" in note for note in found.notes)
    assert not verified(moved, episodes=6, teacher_reading=Reading(normalization="none")).holds
    (moved / "elsewhere" / "mine.pkl").write_bytes(statistics(tmp_path.with_name("other") / "mine.pkl").read_bytes() + b" ")
    (objection,) = verified(moved, episodes=6).objections
    assert objection == "the teacher is not the one that was certified: mine.pkl differs"


def test_what_cannot_be_repeated_is_not_played_again(folder, monkeypatch):
    monkeypatch.setattr(module, "probe", lambda spec, step_timeout: Probe(spec.id, "seed 1 twice, reset: another observation"))
    with pytest.raises(RequestError, match=r"tests/Walk-v0 does not follow its seed \(seed 1 twice"):
        verified(folder)


def test_a_module_of_the_environment_is_imported_where_the_user_names_it_again(folder):
    env = f"no_such_module:{WALK.id}"
    change(folder, lambda data: data["environment"].update(id="no_such_module:Other-v0"))
    with pytest.raises(RequestError, match="importing no_such_module runs its code: give --env no_such_module:Other-v0"):
        verified(folder, episodes=2)
    with pytest.raises(RequestError, match=r"the module no_such_module of the environment .* cannot be imported"):
        verified(folder, episodes=2, env="no_such_module:Other-v0")
    with pytest.raises(RequestError, match="is about 'no_such_module:Other-v0': leave it out"):
        verified(folder, episodes=2, env=env)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(max_episodes=10**12),
        lambda data: data.update(max_episodes=True),
        lambda data: data["student"].update(sha256={"a": 3}),
        lambda data: data["student"].update(path="a" * 10_000),
        lambda data: data["student"].update(path="nul\x00"),
        lambda data: data["environment"].update(wrappers=3),
        lambda data: data["environment"].update(id="\x1b[31m"),
        lambda data: data["teacher"].update(algo=[1]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(edit, folder):
    change(folder, edit)
    with pytest.raises(RequestError) as caught:
        verified(folder, episodes=2)
    assert str(caught.value).isprintable()


def test_another_code_of_the_environment_is_named(folder):
    """Its returns are compared as those of another version: by their means."""
    assert set(read_certificate(folder / "certificate.json")["sources"]) == {"tests.small_worlds"}
    assert not any("the environment's code" in note for note in verified(folder, episodes=6).notes)
    change(folder, lambda data: data["sources"].update({"tests.small_worlds": "0" * 64}))
    found = verified(folder, episodes=6)
    assert found.holds, found.objections
    assert "the environment's code is not the one that was certified: tests.small_worlds changed" in found.notes
