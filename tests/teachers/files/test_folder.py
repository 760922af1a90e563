"""Where an agent's files are, and what the folder around them tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_distill.config import RequestError
from policy_distill.teachers import find_agent, shipped_agents
from policy_distill.teachers.files import folder
from policy_distill.teachers.files.saved_config import read_yaml

CONFIG = """!!python/object/apply:collections.OrderedDict
- - - env_wrapper
    - - sb3_contrib.common.wrappers.TimeFeatureWrapper
      - rl_zoo3.wrappers.HistoryWrapper:
          horizon: 2
  - - normalize
    - {normalize}
  - - policy
    - MlpPolicy
"""
ARGUMENTS = """!!python/object/apply:collections.OrderedDict
- - - algo
    - ppo
  - - env
    - LunarLander-v2
  - - env_kwargs
    - {kwargs}
"""


def run_folder(
    root: Path, *, normalize: str = "false", kwargs: str = "null", statistics: bool = False, zips=("LunarLander-v2.zip",)
) -> Path:
    run = root / "ppo" / "LunarLander-v2_1"
    settings = run / "LunarLander-v2"
    settings.mkdir(parents=True)
    (settings / "config.yml").write_text(CONFIG.replace("{normalize}", normalize))
    (settings / "args.yml").write_text(ARGUMENTS.replace("{kwargs}", kwargs))
    for name in zips:
        (run / name).write_bytes(b"")
    if statistics:
        (settings / "vecnormalize.pkl").write_bytes(b"")
    return run


def test_a_run_of_the_zoo(tmp_path):
    run = run_folder(tmp_path, normalize="true", kwargs="{gravity: -5.0}", statistics=True)
    for name in (run, run / "LunarLander-v2.zip", run / "LunarLander-v2"):
        files = find_agent(name)
        assert files.zip_path == run / "LunarLander-v2.zip"
        assert files.algo == "ppo"
        assert files.env is not None
        assert files.env.id == "LunarLander-v2"
        assert files.env.kwargs == {"gravity": -5.0}
        assert files.env.wrappers == (("TimeFeatureWrapper", {}), ("HistoryWrapper", {"horizon": 2}))
        assert files.normalized
        assert files.vecnormalize_path == run / "LunarLander-v2" / "vecnormalize.pkl"


@pytest.mark.parametrize(
    ("setting", "normalized"),
    [
        ("true", True),
        ('"true"', True),
        ('"True"', True),
        ("{norm_obs: true, norm_reward: false}", True),
        ("{norm_reward: false}", True),
        ("\"{'norm_obs': True, 'norm_reward': False}\"", True),
        ("dict(norm_obs=True, norm_reward=False)", True),
        ("false", False),
        ('"False"', False),
        ("null", False),
        ("{norm_obs: false, norm_reward: true}", False),
        ("\"{'norm_obs': False}\"", False),
        ("dict(norm_obs=False, norm_reward=True)", False),
    ],
)
def test_every_way_to_say_normalize(tmp_path, setting, normalized):
    # A file of statistics that the settings do not ask for is left alone, as in the zoo.
    files = find_agent(run_folder(tmp_path, normalize=setting, statistics=True))
    assert files.normalized == normalized
    assert (files.vecnormalize_path is not None) == normalized


@pytest.mark.parametrize(
    ("setting", "normalized"),
    [
        ("true", True),
        ("{norm_obs: true, norm_reward: false}", False),
        ("{norm_reward: false}", False),
        ("dict(norm_obs=True, norm_reward=False)", False),
        ("false", False),
        ("null", False),
        ("{norm_obs: false, norm_reward: true}", True),
        ("\"{'norm_obs': False}\"", True),
    ],
)
def test_every_way_to_say_normalize_of_rewards(tmp_path, setting, normalized):
    files = find_agent(run_folder(tmp_path, normalize=setting, statistics=True))
    assert files.rewards_normalized == normalized
    assert (files.reward_statistics_path is not None) == normalized


def test_missing_statistics_of_rewards_hinder_no_one(tmp_path):
    files = find_agent(run_folder(tmp_path, normalize="{norm_obs: false}"))
    assert (files.normalized, files.rewards_normalized, files.reward_statistics_path) == (False, True, None)


def test_missing_statistics_are_refused_with_the_place_to_put_them(tmp_path):
    run = run_folder(tmp_path, normalize="true")
    with pytest.raises(RequestError, match=r"statistics are missing: put vecnormalize.pkl at .*LunarLander-v2/vecnormalize.pkl"):
        find_agent(run)


def test_which_zip_of_a_run(tmp_path):
    checkpoints = ("rl_model_900_steps.zip", "rl_model_10000_steps.zip")
    run = run_folder(tmp_path, zips=("LunarLander-v2.zip", "best_model.zip", *checkpoints))
    assert find_agent(run).zip_path.name == "LunarLander-v2.zip"
    (run / "LunarLander-v2.zip").unlink()
    assert find_agent(run).zip_path.name == "best_model.zip"
    assert find_agent(run).env is not None
    (run / "best_model.zip").unlink()
    assert find_agent(run).zip_path.name == "rl_model_10000_steps.zip"
    assert find_agent(run / checkpoints[0]).env is not None
    for name in checkpoints:
        (run / name).rename(run / f"other_{name}")
    with pytest.raises(RequestError, match=r"holds 2 zips; name one of them: other_rl_model_10000_steps\.zip"):
        find_agent(run)


def test_a_checkpoint_has_statistics_of_its_own(tmp_path):
    run = run_folder(tmp_path, normalize="true", statistics=True, zips=("rl_model_900_steps.zip",))
    (run / "rl_model_vecnormalize_900_steps.pkl").write_bytes(b"")
    assert find_agent(run).vecnormalize_path == run / "rl_model_vecnormalize_900_steps.pkl"


def test_a_zip_alone(tmp_path):
    (tmp_path / "mine.zip").write_bytes(b"")
    files = find_agent(tmp_path / "mine.zip")
    assert (files.algo, files.env, files.normalized, files.vecnormalize_path) == (None, None, False, None)
    assert find_agent(tmp_path / "mine") == files  # Stable-Baselines3 adds the suffix, too
    assert find_agent(tmp_path) == files  # the only one in its folder
    for place in ("mine/vecnormalize.pkl", "vecnormalize.pkl", "mine_vecnormalize.pkl"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
        files = find_agent(tmp_path / "mine.zip")
        assert files.normalized
        assert files.vecnormalize_path in (tmp_path / place, tmp_path / "mine_vecnormalize.pkl")
        assert files.reward_statistics_path == files.vecnormalize_path
        (tmp_path / place).unlink()


def test_shipped_agents_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "agents_dir", lambda: tmp_path)
    first = run_folder(tmp_path)
    second = first.rename(first.with_name("LunarLander-v2_10"))
    first = run_folder(tmp_path)
    first = first.rename(first.with_name("LunarLander-v2_9"))
    assert shipped_agents() == ["ppo/LunarLander-v2"]
    assert find_agent("ppo/LunarLander-v2").zip_path.parent == second  # the newest run, by number
    assert find_agent("ppo/LunarLander-v2_9").zip_path.parent == first
    for wrong in ("ppo/LunarLander", "pp/LunarLander-v2", "LunarLander-v2", "ppo/../ppo"):
        with pytest.raises(RequestError, match="shipped agents nearest to it: ppo/LunarLander-v2") as caught:
            find_agent(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="no agent is named"):
        find_agent("")


def test_the_code_in_hostile_settings_does_not_run(tmp_path):
    target = tmp_path / "code_ran.txt"
    payload = f"!!python/object/apply:os.system ['touch {target}']"
    run = run_folder(tmp_path, normalize=payload)
    with pytest.raises(RequestError, match="normalize holds a Python object, which is not made"):
        find_agent(run)
    config = run / "LunarLander-v2" / "config.yml"
    config.write_text(CONFIG.replace("{normalize}", "false") + f"  - - noise\n    - {payload}\n")
    find_agent(run)  # a setting that is not read
    for content in (payload, f"!!python/object/new:os.system ['touch {target}']", "[1, 2]", "{", "a: " + "[" * 5000, "\x00"):
        config.write_text(content)
        with pytest.raises(RequestError) as caught:
            find_agent(run)
        assert "\n" not in str(caught.value)
    config.write_text(CONFIG.replace("{normalize}", f"\"__import__('os').system('touch {target}')\""))
    with pytest.raises(RequestError, match="it must be true, false or a dict"):
        find_agent(run)
    assert not target.exists()


def test_aliases_do_not_multiply(tmp_path):
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    path = tmp_path / "bomb.yml"
    path.write_text("\n".join([*lines, "env_wrapper: *a39"]))
    with pytest.raises(RequestError, match="too many aliases"):
        read_yaml(path)
    path.write_text("a: &a [1]\nb: *a\n")
    assert read_yaml(path) == {"a": [1], "b": [1]}


def test_settings_in_ordinary_yaml(tmp_path):
    run = run_folder(tmp_path)
    (run / "LunarLander-v2" / "config.yml").write_text(
        "frame_stack: 4\nenv_kwargs: dict(a=1)\nenv_wrapper: a.b.C\nsize: !!python/tuple [1]\n"
    )
    (run / "LunarLander-v2" / "args.yml").write_text("")
    files = find_agent(run)
    assert files.env is not None
    assert (files.env.id, files.env.kwargs) == ("LunarLander-v2", {"a": 1})
    assert files.env.wrappers == (("a.b.C", {}), ("VecFrameStack", {"n_stack": 4}))
    assert files.algo == "ppo"  # by the folder's name


def test_how_an_environment_was_drawn_is_ignored_and_its_length_kept(tmp_path):
    files = find_agent(run_folder(tmp_path, kwargs="{gravity: -5.0, render_mode: human, max_episode_steps: 50}"))
    assert files.env is not None
    assert files.env.kwargs == {"gravity": -5.0}
    assert files.env.max_episode_steps == 50


def test_wrappers_stand_in_the_zoo_s_order_without_those_that_only_record(tmp_path):
    run = run_folder(tmp_path)
    (run / "LunarLander-v2" / "config.yml").write_text(
        "frame_stack: 2\nvec_env_wrapper:\n- stable_baselines3.common.vec_env.VecMonitor\n"
        "- stable_baselines3.common.vec_env.VecFrameStack: {n_stack: 3}\n"
        "env_wrapper:\n- stable_baselines3.common.monitor.Monitor\n- gymnasium.wrappers.TimeLimit: {max_episode_steps: 9}\n- mine:Shaped\n"
    )
    env = find_agent(run).env
    assert env is not None
    assert env.wrappers == (
        ("TimeLimit", {"max_episode_steps": 9}),
        ("mine.Shaped", {}),  # no colon: nothing that a file names is imported
        ("VecFrameStack", {"n_stack": 3}),
        ("VecFrameStack", {"n_stack": 2}),
    )


@pytest.mark.parametrize("setting", ["env_wrapper: 3", "env_wrapper: [[a]]", "frame_stack: four", "env_kwargs: f(x)"])
def test_settings_that_cannot_be_followed_are_refused(tmp_path, setting):
    run = run_folder(tmp_path)
    (run / "LunarLander-v2" / "config.yml").write_text(setting)
    with pytest.raises(RequestError, match="must be"):
        find_agent(run)


# As the RL Zoo uploads an agent: everything flat in one folder.


def uploaded(root: Path, *, normalize: str = "true", kwargs: str = "null") -> Path:
    repository = root / "ppo-LunarLander-v2"
    repository.mkdir()
    (repository / "config.yml").write_text(CONFIG.replace("{normalize}", normalize))
    (repository / "args.yml").write_text(ARGUMENTS.replace("{kwargs}", kwargs))
    (repository / "env_kwargs.yml").write_text("gravity: -3.0\nrender_mode: rgb_array\n")
    (repository / "results.json").write_text('{"mean_reward": 250.0, "std_reward": 10.0, "is_deterministic": true, "n_eval_episodes": 10}')
    for name in ("ppo-LunarLander-v2.zip", "train_eval_metrics.zip", "replay.mp4", "README.md", "vec_normalize.pkl"):
        (repository / name).write_bytes(b"")
    (repository / "ppo-LunarLander-v2").mkdir()
    (repository / "ppo-LunarLander-v2" / "policy.pth").write_bytes(b"")
    return repository


@pytest.mark.parametrize("name", ["", "ppo-LunarLander-v2.zip"])
def test_a_folder_as_the_zoo_uploads_it_is_read_whole(name, tmp_path):
    repository = uploaded(tmp_path, kwargs="{gravity: -5.0, wind: true}")
    files = find_agent(repository / name)
    assert files.zip_path == repository / "ppo-LunarLander-v2.zip"
    assert files.algo == "ppo"
    assert files.env is not None
    assert files.env.id == "LunarLander-v2"
    assert files.env.kwargs == {"gravity": -3.0, "wind": True}  # those of its evaluation; render_mode is of its film
    assert files.env.wrappers == (("TimeFeatureWrapper", {}), ("HistoryWrapper", {"horizon": 2}))
    assert files.vecnormalize_path == repository / "vec_normalize.pkl"
    assert files.rewards_normalized is True


def test_an_upload_without_normalisation_has_no_statistics(tmp_path):
    repository = uploaded(tmp_path, normalize="false")
    assert find_agent(repository).vecnormalize_path is None
    (tmp_path / "b").mkdir()
    repository = uploaded(tmp_path / "b")
    (repository / "vec_normalize.pkl").unlink()
    with pytest.raises(RequestError, match=r"statistics are missing: put vecnormalize\.pkl at .*, or name the file with --normalization"):
        find_agent(repository)
    assert find_agent(repository, normalization="none").normalization_source == "none"


def test_a_user_s_own_config_beside_a_zip_is_not_the_zoo_s(tmp_path):
    (tmp_path / "mine.zip").write_bytes(b"")
    (tmp_path / "config.yml").write_text("- a list\n")
    assert find_agent(tmp_path / "mine.zip").env is None


def test_the_user_s_word_on_normalisation_wins_over_the_settings(tmp_path):
    run = run_folder(tmp_path, normalize="false", statistics=True)
    assert find_agent(run).vecnormalize_path is None
    named = run / "LunarLander-v2" / "vecnormalize.pkl"
    assert find_agent(run, normalization=str(named)).vecnormalize_path == named
    assert find_agent(run).normalization_source == str(run / "LunarLander-v2" / "config.yml")


def test_settings_are_found_behind_a_symbolic_link(tmp_path):
    run = run_folder(tmp_path, normalize="true", statistics=True)
    link = tmp_path / "link.zip"
    link.symlink_to(run / "LunarLander-v2.zip")
    files = find_agent(link)
    assert files.algo == "ppo"
    assert files.env is not None
    assert files.vecnormalize_path == run / "LunarLander-v2" / "vecnormalize.pkl"


def test_a_shipped_agent_has_the_name_that_finds_its_file():
    for name in shipped_agents():
        assert folder.shipped_name(find_agent(name).zip_path) == name
    assert folder.shipped_name(None) is None


def test_a_name_is_that_of_the_newest_run_and_another_run_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "agents_dir", lambda: tmp_path / "agents")
    places = {
        "agents/ppo/World-v0_1": "ppo/World-v0_1",
        "agents/ppo/World-v0_2": "ppo/World-v0",
        "World-v0_2": None,
        "copy/a2c/World-v0_2": None,
    }
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "World-v0.zip").write_text(place)
    assert [folder.shipped_name(tmp_path / place / "World-v0.zip") for place in places] == list(places.values())
    copy = tmp_path / "copy" / "ppo" / "World-v0_2" / "World-v0.zip"
    copy.parent.mkdir(parents=True)
    copy.write_text("another agent")
    assert folder.shipped_name(copy) is None
    copy.write_text("agents/ppo/World-v0_2")
    assert folder.shipped_name(copy) == "ppo/World-v0"
