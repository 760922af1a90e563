"""A features extractor from the user's source and the zip's weights."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.certify import files_of_teacher
from policy_distill.evaluation.return_cache import known_returns
from policy_distill.teachers import Teacher
from policy_distill.teachers.reading import extractors_of
from tests.teachers import extractors
from tests.teachers.conftest import THREE, build
from tests.teachers.files.test_archive import edited

SOURCE = Path(extractors.__file__)
OBSERVATIONS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def agent(algo: str = "PPO", name: str = "Layers", **policy_kwargs):
    return build(algo, action_space=THREE, policy_kwargs={"features_extractor_class": getattr(extractors, name), **policy_kwargs})


@pytest.fixture
def path(save) -> Path:
    return save(agent())


def test_of_several_agents_those_with_an_extractor_of_this_name_get_it(tmp_path):
    agents = [tmp_path / f"{name}.zip" for name in ("layers", "tenth", "plain", "damaged", "missing")]
    for path, model in zip(agents, (agent(), agent(name="Tenth"), build("PPO", action_space=THREE)), strict=False):
        model.save(path)
    agents[3].write_bytes(b"no zip")
    for name, getting in (("Layers", [0]), ("Tenth", [1])):
        extractor = f"{SOURCE}:{name}"
        expected = [extractor if number in getting else None for number in range(len(agents))]
        assert extractors_of([str(path) for path in agents], extractor) == expected
    assert extractors_of(["one", "other"], None) == [None, None]
    with pytest.raises(RequestError, match="none of the agents reads its observations through a class Tenth: leave it out"):
        extractors_of([str(agents[0]), str(agents[2])], f"{SOURCE}:Tenth")
    with pytest.raises(RequestError, match="defines no class 'Missing'"):
        extractors_of([str(agents[0])], f"{SOURCE}:Missing")


def refused(path: Path, extractor: str, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        Teacher.load(path, extractor=extractor)
    assert "\n" not in str(caught.value)


def test_weights_come_from_the_zip_and_the_rest_is_rebuilt(path):
    teacher = Teacher.load(path, extractor=f"{SOURCE}:Layers")
    # Extractor 3 -> 6, hidden 7 and 5, 3 actions; the value network's parts do not act.
    assert teacher.params == (3 + 1) * 6 + (6 + 1) * 7 + (7 + 1) * 5 + (5 + 1) * 3
    assert teacher.describe()["layers"] == [3, 6, 7, 5, 3]
    assert teacher.notes == (f"observations are read by {SOURCE}:Layers",)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_nothing_in_the_zip_is_unpickled(save, tmp_path, trap):
    model = agent()
    model.tensorboard_log = trap
    path = save(model)
    assert Teacher.load(path, extractor=f"{SOURCE}:Layers").act(OBSERVATIONS).shape == (16,)


@pytest.mark.parametrize("algo", ["PPO", "DQN"])
def test_the_critic_reads_through_its_own_extractor(algo, save):
    model = agent(algo, share_features_extractor=False) if algo == "PPO" else agent(algo)
    teacher = Teacher.load(save(model), extractor=f"{SOURCE}:Layers")
    inputs = torch.tensor(OBSERVATIONS)
    with torch.no_grad():
        expected = model.policy.predict_values(inputs)[:, 0] if algo == "PPO" else model.q_net(inputs).amax(1)
    torch.testing.assert_close(teacher.values(inputs), expected)


@pytest.mark.parametrize("algo", ["SAC", "TD3", "TQC"])
def test_the_critics_of_single_actions_read_through_theirs(algo, save):
    if algo == "TQC":
        pytest.importorskip("sb3_contrib")
    model = build(algo, policy_kwargs={"features_extractor_class": extractors.Layers})
    teacher = Teacher.load(save(model), extractor=f"{SOURCE}:Layers")
    inputs = torch.tensor(OBSERVATIONS)
    with torch.no_grad():
        answer = model.critic(inputs, model.actor(inputs, deterministic=True) if algo != "TD3" else model.actor(inputs))
    expected = answer.mean((1, 2)) if algo == "TQC" else torch.cat(answer, 1).amin(1)
    torch.testing.assert_close(teacher.values(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_file_may_import_what_lies_beside_it(save, tmp_path):
    (tmp_path / "beside_the_networks.py").write_text("FACTOR = 10\n")
    source = tmp_path / "networks.py"
    source.write_text(
        "import torch\nfrom beside_the_networks import FACTOR\n\n\nclass Mine(torch.nn.Module):\n"
        "    def __init__(self, space):\n        super().__init__()\n\n    def forward(self, x):\n        return x / FACTOR\n"
    )
    model = agent(name="Tenth")
    teacher = Teacher.load(save(model), extractor=f"{source}:Mine")
    assert np.array_equal(teacher.act(OBSERVATIONS), model.predict(OBSERVATIONS, deterministic=True)[0])
    assert teacher.notes[-1].endswith("networks.py:Mine; the agent was trained with Tenth")


def test_a_teacher_with_an_extractor_is_copied_with_it(path):
    teacher = Teacher.load(path, extractor=f"{SOURCE}:Layers")
    twin = copy.deepcopy(teacher)
    assert np.array_equal(twin.act(OBSERVATIONS), teacher.act(OBSERVATIONS))


def test_a_process_of_its_own_runs_the_file_for_its_classes(path, tmp_path):
    teacher = Teacher.load(path, extractor=f"{SOURCE}:Layers")
    np.save(tmp_path / "seen.npy", OBSERVATIONS)
    (tmp_path / "teacher.pkl").write_bytes(pickle.dumps(teacher))
    script = (
        "import pathlib, pickle, sys, numpy\nfolder = pathlib.Path(sys.argv[1])\n"
        "teacher = pickle.loads((folder / 'teacher.pkl').read_bytes())\n"
        "numpy.save(folder / 'acted.npy', teacher.act(numpy.load(folder / 'seen.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=SOURCE.parents[2])
    assert np.array_equal(np.load(tmp_path / "acted.npy"), teacher.act(OBSERVATIONS))


def test_agents_share_the_classes_of_one_file_and_not_those_of_another_of_its_name(save, tmp_path):
    source = (
        "import torch\n\n\nclass Mine(torch.nn.Module):\n    def __init__(self, space):\n        super().__init__()\n\n"
        "    def forward(self, x):\n        return x / {}\n"
    )
    sources = []
    for factor in (10, 2):
        (tmp_path / str(factor)).mkdir()
        sources.append(tmp_path / str(factor) / "networks.py")
        sources[-1].write_text(source.format(factor))
    path = save(agent(name="Tenth"))
    teachers = [Teacher.load(path, extractor=f"{source}:Mine") for source in (*sources, sources[0])]
    acted = [pickle.loads(pickle.dumps(teacher)).targets(torch.tensor(OBSERVATIONS)).parameters["logits"] for teacher in teachers]
    assert torch.equal(acted[0], acted[2])
    assert not torch.equal(acted[0], acted[1])


def test_the_source_decides_how_the_agent_acts(path, tmp_path):
    source = tmp_path / "networks.py"
    source.write_text(SOURCE.read_text())
    teacher = Teacher.load(path, extractor=f"{source}:Layers")
    assert set(teacher.files) == {Path(path), source}
    before = files_of_teacher(teacher, str(path))["sha256"]
    source.write_text(SOURCE.read_text() + "# changed\n")
    assert [name for name, digest in files_of_teacher(teacher, str(path))["sha256"].items() if before[name] != digest] == ["networks.py"]
    assert "teacher" not in known_returns(teacher, EnvironmentSpec("CartPole-v1"))


def test_its_layers_are_recorded_as_others_are(path):
    teacher = Teacher.load(path, extractor=f"{SOURCE}:Layers")
    name = next(name for name, width in teacher.layers().items() if width == 6)
    seen = teacher.recording([name]).targets(torch.tensor(OBSERVATIONS))
    assert seen.parameters[f"layer:{name}"].shape == (16, 6)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Layers", "name the file and the class in it"),
        ("networks.py:", "name the file and the class in it"),
        ("no_such_file.py:Layers", r"no_such_file\.py, which does not exist"),
        (f"{SOURCE}:Missing", "defines no class 'Missing'"),
        (f"{SOURCE}:np", "defines no class 'np'"),
        (f"{SOURCE}:Rows", r"Rows cannot be made with observation_space \(IndexError"),
        (f"{SOURCE}:numbers_read", "makes a int, which is not a torch.nn.Module"),
        (f"{SOURCE}:Plain", "weights in .* are not those of .*Plain"),
        (f"{SOURCE}:Tenth", "weights in .* are not those of .*Tenth"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(path, text, match):
    refused(path, text, match)


def test_a_file_that_cannot_be_run_is_said_in_one_line(path, tmp_path):
    source = tmp_path / "broken.py"
    source.write_text("import a_module_that_does_not_exist\n")
    refused(path, f"{source}:Mine", "broken.py cannot be run .ModuleNotFoundError")
    source.write_text("raise SystemExit('train first')\n")
    refused(path, f"{source}:Mine", "broken.py cannot be run .SystemExit: train first")
    source.write_text("class Mine(:\n")
    refused(path, f"{source}:Mine", "broken.py cannot be run .SyntaxError")


def test_features_of_another_width_or_shape_are_refused(save, tmp_path):
    source = tmp_path / "networks.py"
    template = (
        "import torch\nclass Mine(torch.nn.Module):\n    def __init__(self, space):\n        super().__init__()\n"
        "    def forward(self, x):\n        return {}\n"
    )
    path = save(agent(name="Tenth"))
    for answer, match in {
        "x[:, :2]": "layers do not fit the features of",
        "x[:, :, None]": r"returns the shape \(2, 3, 1\) for 2 observations",
        "[x]": "returns list for 2 observations",
        "x.no_such_method()": "does not read .*AttributeError",
    }.items():
        source.write_text(template.format(answer))
        refused(path, f"{source}:Mine", match)


def test_arguments_that_are_no_plain_values_are_refused(path, tmp_path):
    kwargs = {"features_extractor_class": "<class 'x.Layers'>", "features_extractor_kwargs": "{'act': <class 'torch.nn.ReLU'>}"}
    refused(edited(path, tmp_path / "edited.zip", policy_kwargs=kwargs), f"{SOURCE}:Layers", "not plain values .*save the agent without")
    kwargs["features_extractor_kwargs"] = "{'width': 6}"
    assert Teacher.load(edited(path, tmp_path / "plain.zip", policy_kwargs=kwargs), extractor=f"{SOURCE}:Layers").obs_dim == 3


def test_an_agent_without_an_extractor_needs_none(save):
    refused(save(build("PPO")), f"{SOURCE}:Layers", "without a features extractor of its own; leave --extractor out")
