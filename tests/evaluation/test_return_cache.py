"""Returns that are kept from job to job: exact, never another policy's or environment's, and never in the way."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.specs import EnvironmentSpec, entries, resolve
from policy_distill.evaluation import certify
from policy_distill.evaluation import return_cache as module
from policy_distill.evaluation.return_cache import REPEATABLE, KnownReturns, folder, known_returns
from policy_distill.export.sb3 import save_ppo
from policy_distill.rollouts.episodes import Episodes, evaluate
from policy_distill.rollouts.processes import Remote
from policy_distill.support.pending import Pending
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, random_student, walk_teacher

CARTPOLE = resolve("CartPole-v1")
SEEN, ACTED = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(2)


def episodes(seeds: Sequence[int], returns: Sequence[float] | None = None) -> Episodes:
    """Returns and lengths that follow from the seeds, where no others are named."""
    numbers = np.array(seeds, np.int64)
    return Episodes(numbers, numbers / 3 if returns is None else np.array(returns), numbers + 1)


def agent(path: Path, *, seed: int = 1) -> str:
    """A zip of an agent that falls sooner or later, on each seed at another time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(save_ppo(random_student(SEEN, ACTED, seed=seed), path))


@pytest.fixture
def zip_path(tmp_path) -> str:
    return agent(tmp_path / "agents" / "ppo.zip")


# What a file holds.


def test_what_was_kept_comes_back_in_the_order_that_is_asked_for_to_the_last_bit(tmp_path):
    store = KnownReturns(tmp_path / "cache" / "a.npz")
    assert len(store.read([3, 1]).seeds) == 0
    store.add(episodes([1, 2, 3], [0.1 + 0.2, -1.7e308, 5e-324]))
    found = store.read([3, 9, 1, 2])
    assert found.seeds.tolist() == [3, 1, 2]
    assert found.returns.tolist() == [5e-324, 0.1 + 0.2, -1.7e308]
    assert found.lengths.tolist() == [4, 2, 3]
    assert found.agreement is None


def test_what_is_known_already_is_not_kept_twice(tmp_path):
    store = KnownReturns(tmp_path / "a.npz")
    store.add(episodes([5, 2], [50.0, 20.0]))
    store.add(episodes([2, 7], [-1.0, 70.0]))
    assert store.read([2, 5, 7]).returns.tolist() == [20.0, 50.0, 70.0]
    with np.load(store.path) as data:
        assert data["seeds"].tolist() == [2, 5, 7]


def test_two_writers_add_to_each_other_s(tmp_path):
    one, other = KnownReturns(tmp_path / "a.npz"), KnownReturns(tmp_path / "a.npz")
    one.add(episodes([1]))
    other.add(episodes([2]))
    one.add(episodes([3]))
    assert other.read([1, 2, 3]).seeds.tolist() == [1, 2, 3]


class Writer:
    """Keeps one episode after the other, and looks at what is there meanwhile."""

    def __init__(self, path: Path, first: int) -> None:
        self.store, self.first = KnownReturns(path), first

    def work(self) -> None:
        for seed in range(self.first, self.first + 25):
            self.store.add(episodes([seed]))
            found = self.store.read(range(400))
            assert len(found.seeds), "a file that is there is whole"
            np.testing.assert_array_equal(found.returns, found.seeds / 3)


def test_writers_at_the_same_moment_forget_and_damage_nothing(tmp_path):
    writers = [Remote(Writer, tmp_path / "a.npz", 100 * number) for number in range(4)]
    Pending.together([writer.submit("work") for writer in writers]).result()
    for writer in writers:
        writer.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "a.npz"]
    assert len(KnownReturns(tmp_path / "a.npz").read(range(400)).seeds) == 100


def test_a_writer_that_holds_the_lock_for_ever_holds_up_no_job(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    store = KnownReturns(tmp_path / "a.npz")
    with module._locked(tmp_path / ".lock"):
        store.add(episodes([1]))
    assert len(store.read([1]).seeds) == 0
    store.add(episodes([1]))
    assert len(store.read([1]).seeds) == 1


def flipped(path: Path) -> None:
    """One bit of the first return is another one."""
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(1 / 3).tobytes())] ^= 1
    path.write_bytes(content)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def holding(returns: Any = (1.0,), seeds: Any = (1,), lengths: Any = (1,), name: str = "a.npz") -> Callable[[Path], object]:
    """Write these arrays with the hash that belongs to them: what a forger, or an error in this program, can write."""

    def write(path: Path) -> None:
        held = Episodes(np.array(seeds), np.array(returns), np.array(lengths))
        digest = KnownReturns(path.with_name(name))._hash(held)
        np.savez(path, seeds=held.seeds, returns=held.returns, lengths=held.lengths, sha256=digest)

    return write


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read"),
    "one bit": (flipped, "cannot be read"),
    "text": (lambda path: path.write_text('{"returns": [1]}'), "cannot be read"),
    "one array": (one_array, "cannot be read"),
    "no lengths": (lambda path: np.savez(path, seeds=np.array([1]), returns=np.array([1.0])), "cannot be read"),
    "objects": (holding(np.array([1.0], object)), "not numeric"),
    "texts": (holding(seeds=["1"]), "an array of <U1"),
    "unequal": (holding(seeds=[1, 2]), "shape"),
    "a table": (holding([[1.0]], [[1]], [[1]]), "shape"),
    "a number": (holding(np.float64(1.0), np.int64(1), np.int64(1)), "shape"),
    "no hash": (lambda path: np.savez(path, seeds=np.array([1]), returns=np.array([1.0]), lengths=np.array([1])), "cannot be read"),
    "of another policy": (holding(name="b.npz"), "do not have the hash"),
    "NaN": (holding([np.nan]), "a return is NaN or infinite"),
    "infinity": (holding([-np.inf]), "a return is NaN or infinite"),
    "a seed twice": (holding([1.0, 6.0], [1, 1], [1, 1]), "a seed stands in it twice"),
    "no steps": (holding(lengths=[0]), "an episode has no steps"),
    "a seed below zero": (holding(seeds=[-1]), "a seed is negative"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_dropped_with_a_line_and_is_written_anew(tmp_path, damage):
    lines: list[str] = []
    store = KnownReturns(tmp_path / "a.npz", lines.append)
    store.add(episodes([1, 2]))
    write, reason = DAMAGES[damage]
    write(store.path)
    assert len(store.read([1, 2]).seeds) == 0
    (line,) = lines
    assert line.startswith(f"the cache of known returns {store.path} cannot be read (")
    assert reason in line
    assert line.endswith("its episodes are played again")
    assert len(store.read([1, 2]).seeds) == 0
    store.add(episodes([2]))
    assert store.read([1, 2]).returns.tolist() == [2 / 3]
    assert len(lines) == 1, "one line for one file"


def test_a_return_that_was_changed_with_all_its_checksums_is_found(tmp_path):
    """numpy's zip has a checksum of its own, which a change with numpy's tools renews."""
    store = KnownReturns(tmp_path / "a.npz")
    store.add(episodes([1, 2]))
    with np.load(store.path) as data:
        arrays = dict(data)
    arrays["returns"][0] -= 1.0
    np.savez(store.path, **arrays)
    assert len(store.read([1, 2]).seeds) == 0


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    store = KnownReturns(tmp_path / "cache" / "returns" / "a.npz")
    store.add(episodes([1]))
    assert len(store.read([1]).seeds) == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "/somewhere"}, Path("/somewhere/policy-distill/returns")),
        ({"XDG_CACHE_HOME": "not/absolute"}, Path("/home/me/.cache/policy-distill/returns")),
        ({"XDG_CACHE_HOME": ""}, Path("/home/me/.cache/policy-distill/returns")),
    ],
)
def test_the_folder_is_the_user_s_cache(monkeypatch, variables, expected):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert folder() == expected


def test_without_a_home_nothing_is_kept(monkeypatch, zip_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(module.os.path, "expanduser", lambda path: path)  # what it does where there is none
    assert folder() is None
    assert known_returns(Teacher.load(zip_path), CARTPOLE) == {}


# Under which name.


def names(zip_path: str, spec: EnvironmentSpec = CARTPOLE, **changes: Any) -> dict[str, str]:
    return {who: store.path.name for who, store in known_returns(Teacher.load(zip_path, **changes), spec).items()}


def test_teacher_and_random_policy_have_files_of_their_own_below_the_cache(zip_path):
    found = known_returns(Teacher.load(zip_path), CARTPOLE)
    assert set(found) == {"teacher", "random"}
    assert found["teacher"].path != found["random"].path
    assert {store.path.parent for store in found.values()} == {folder()}


def test_a_copy_elsewhere_is_the_same_agent(zip_path, tmp_path):
    copy = tmp_path / "elsewhere" / "mine.zip"
    copy.parent.mkdir()
    copy.write_bytes(Path(zip_path).read_bytes())
    assert names(str(copy)) == names(zip_path)


def test_another_agent_is_another_file_and_the_random_policy_the_same(zip_path, tmp_path):
    one, other = names(zip_path), names(agent(tmp_path / "other.zip", seed=2))
    assert one["teacher"] != other["teacher"]
    assert one["random"] == other["random"]


def test_what_acts_is_what_counts_not_what_lies_on_the_disk_by_now(zip_path, tmp_path):
    """The files may be replaced while a job goes on, or the weights changed in memory."""
    before, teacher = names(zip_path), Teacher.load(zip_path)
    agent(Path(zip_path), seed=2)
    replaced = known_returns(teacher, CARTPOLE)["teacher"].path.name
    assert replaced not in (before["teacher"], names(zip_path)["teacher"])
    agent(Path(zip_path), seed=1)
    next(teacher.network.parameters()).data[0, 0] += 1
    assert known_returns(teacher, CARTPOLE)["teacher"].path.name != before["teacher"]


def test_an_agent_whose_files_are_gone_is_not_known(zip_path):
    teacher = Teacher.load(zip_path)
    Path(zip_path).unlink()
    assert set(known_returns(teacher, CARTPOLE)) == {"random"}


def test_other_statistics_make_another_agent(zip_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    found = [names(zip_path)]
    for clip in (10.0, 5.0):
        VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=clip).save(str(Path(zip_path).with_name("vecnormalize.pkl")))
        assert Teacher.load(zip_path).normalization is not None
        found.append(names(zip_path))
    assert len({files["teacher"] for files in found}) == 3
    assert len({files["random"] for files in found}) == 1


def test_recorded_layers_make_another_agent(zip_path):
    """Torch answers in numpy's place then, and rounds differently."""
    teacher = Teacher.load(zip_path)
    layer = teacher.last_hidden_layer()
    assert layer is not None
    paths = {known_returns(who, CARTPOLE)["teacher"].path for who in (teacher, teacher.recording([layer]))}
    assert len(paths) == 2


def reregistered(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Register CartPole-v1 in another way."""
    return lambda patch: patch.setitem(gym.registry, "CartPole-v1", dataclasses.replace(gym.registry["CartPole-v1"], **changes))


SURROUNDINGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "this package's sources": lambda patch: patch.setitem(module.SOURCES, "policy_distill", "0"),
    "Gymnasium's sources": lambda patch: patch.setitem(module.SOURCES, "gymnasium", "0"),
    "a version": lambda patch: patch.setattr(torch, "__version__", "0.0"),
    "the processor": lambda patch: patch.setattr(module, "processor", lambda: "another"),
    "the kernels": lambda patch: patch.setattr(certify, "rounding", lambda: "another"),
    "the system": lambda patch: patch.setattr(platform, "platform", lambda: "another"),
    "the time limit": reregistered(max_episode_steps=7),
    "the arguments of the registration": reregistered(kwargs={"sutton_barto_reward": True}),
    "the class": reregistered(entry_point="gymnasium.envs.classic_control.mountain_car:MountainCarEnv"),
}


@pytest.mark.parametrize("what", SURROUNDINGS)
def test_whatever_changes_around_them_nothing_old_is_found(zip_path, what, monkeypatch):
    before = names(zip_path)
    SURROUNDINGS[what](monkeypatch)
    after = names(zip_path)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "CartPole-v0"},
        {"kwargs": {"sutton_barto_reward": True}},
        {"max_episode_steps": 7},
        {"wrappers": (("TimeFeatureWrapper", {}),)},
        {"wrappers": (("TimeFeatureWrapper", {"max_steps": 7}),)},
    ],
    ids=str,
)
def test_each_environment_has_files_of_its_own(zip_path, changes):
    other = names(zip_path, dataclasses.replace(CARTPOLE, **changes))
    assert set(other) == {"teacher", "random"}
    assert not set(other.values()) & set(names(zip_path).values())


def test_the_sources_are_files_names_and_lines(tmp_path):
    def package(**files: str) -> str:
        where = tmp_path / str(len(list(tmp_path.iterdir()))) / "package"
        (where / "inner").mkdir(parents=True)
        for name, text in files.items():
            (where / "inner" / name.replace("_", ".")).write_text(text)
        return module._sources(where)

    assert package(a_py="1", b_xml="2") == package(a_py="1", b_xml="2", a_pyc="other")
    assert len({package(a_py="1", b_xml="2"), package(a_py="1", b_xml="3"), package(a_py="1"), package(b_py="1"), package(a_py="2")}) == 5
    assert module._sources(Path(module.__file__).parents[1]) == module.SOURCES["policy_distill"]


# Who is not known.


def test_a_user_s_own_environment_is_not_known(zip_path):
    assert known_returns(Teacher.load(zip_path), WALK) == {}
    assert known_returns(walk_teacher(), WALK) == {}


class Mine(gym.Env):
    """Not read from a string."""


@pytest.mark.parametrize(
    "changes",
    [
        {"entry_point": "tests.small_worlds:Walk"},
        {"entry_point": "gymnasium_of_mine.envs.classic_control:CartPoleEnv"},
        {"entry_point": "gymnasium.envs.box2d.car_racing:CarRacing"},
        {"entry_point": Mine},
        {"nondeterministic": True},
        {"additional_wrappers": (gym.wrappers.RescaleObservation.wrapper_spec(),)},
        {"kwargs": {"xml_file": "mine.xml"}},
        {"kwargs": {"options": {"file": 1}}},
        {"kwargs": {"noise": np.ones(2)}},
    ],
    ids=str,
)
def test_a_registration_that_does_not_say_all_is_not_known(zip_path, changes, monkeypatch):
    reregistered(**changes)(monkeypatch)
    assert names(zip_path) == {}


@pytest.mark.parametrize("kwargs", [{"xml_file": "mine.xml"}, {"noise": np.ones(2)}, {"layout": ["a", 1]}], ids=str)
def test_arguments_that_may_name_a_file_or_are_no_data_are_not_known(zip_path, kwargs):
    assert names(zip_path, dataclasses.replace(CARTPOLE, kwargs=kwargs)) == {}


def test_a_wrapper_of_the_user_s_own_is_not_known(zip_path):
    assert names(zip_path, dataclasses.replace(CARTPOLE, wrappers=(("RescaleObservation", {"min_obs": 0.0, "max_obs": 1.0}),))) != {}
    assert names(zip_path, dataclasses.replace(CARTPOLE, wrappers=(("mine:Shaped", {}),))) == {}


def test_an_unknown_id_is_not_known(zip_path):
    assert names(zip_path, EnvironmentSpec("NoSuchTask-v0")) == {}


def test_teachers_that_no_file_describes_are_not_known_but_the_random_policy_beside_them_is(zip_path):
    from stable_baselines3 import PPO

    def forwards(observations: np.ndarray) -> np.ndarray:
        return np.ones(len(observations), np.int64)

    loaded, function = Teacher.load(zip_path), Teacher.from_callable(forwards, SEEN, ACTED)
    own_code = Teacher.from_callable(forwards, SEEN, ACTED)
    own_code.path = zip_path  # as a custom policy that was loaded under --trust
    for teacher in (function, own_code, Teacher.from_sb3(PPO.load(zip_path, device="cpu")), Teacher.ensemble([loaded, loaded])):
        found = known_returns(teacher, CARTPOLE)
        assert set(found) == {"random"}
        assert found["random"].path.name == names(zip_path)["random"]


GYMNASIUM = {name: entry.spec for name, entry in entries().items() if entry.spec.id in gym.registry and "/" not in entry.spec.id}
KNOWN = {name: spec for name, spec in GYMNASIUM.items() if REPEATABLE.match(str(gym.registry[spec.id].entry_point))}


def test_all_of_gymnasium_that_is_in_envs_is_repeatable():
    assert all(str(gym.registry[GYMNASIUM[name].id].entry_point)[:9] != "gymnasium" for name in set(GYMNASIUM) - set(KNOWN))
    assert "BipedalWalker-v3" in KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_episodes_of_what_may_be_known_do_not_depend_on_those_before_them(name):
    spec = dataclasses.replace(KNOWN[name], max_episode_steps=80)
    after_others, alone = evaluate(None, spec, [3, 4, 5], num_envs=1), evaluate(None, spec, [5], num_envs=1)
    assert after_others.returns[2] == alone.returns[0]
