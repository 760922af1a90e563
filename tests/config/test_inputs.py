"""What a user may write as the student's inputs."""

from __future__ import annotations

import shlex
import tracemalloc

import pytest

from policy_distill.commands.options.config_file import check_code_is_typed
from policy_distill.commands.options.parser import Parser, spelled_out
from policy_distill.config import DistillConfig, InputsConfig, RequestError, StudentConfig, parse_inputs
from policy_distill.config.code import settings_that_run_code


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ([0, 1, "4:6"], InputsConfig(keep=(0, 1, 4, 5))),
        ("[0,1,4:6]", InputsConfig(keep=(0, 1, 4, 5))),
        ("3", InputsConfig(keep=(3,))),
        ({"keep": "5, 0:2"}, InputsConfig(keep=(5, 0, 1))),
        ({"keys": "observation"}, InputsConfig(keys=("observation",))),
        ({"keep": [0], "history": 4, "noise": 0.1}, InputsConfig(keep=(0,), history=4, noise=0.1)),
        ({"noise": [0, 1]}, InputsConfig(noise=(0.0, 1.0))),
        ({"wrapper": "package.module:Class"}, InputsConfig(wrapper="package.module:Class")),
        ({"history": 1, "noise": 0}, None),
        ({"noise": [0.0, 0.0]}, None),
        (None, None),
    ],
)
def test_what_is_written_and_what_it_means(request_, expected):
    assert parse_inputs(request_) == expected
    if expected is not None:
        assert parse_inputs(expected.to_dict()) == expected


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"kep": [0]}, "kep"),
        ([], "keep"),
        ([0, 0], "keep"),
        (["2:2"], "keep"),
        ([-1], "keep"),
        ([1.5], "keep"),
        ([True], "keep"),
        ("[a]", "keep"),
        (["0:99999999"], "keep"),
        ({"keys": []}, "keys"),
        ({"keys": [1]}, "keys"),
        ({"history": 0}, "history"),
        ({"history": "4"}, "history"),
        ({"history": True}, "history"),
        ({"noise": -1}, "noise"),
        ({"noise": float("inf")}, "noise"),
        ({"noise": []}, "noise"),
        ({"noise": "x"}, "noise"),
        ({"wrapper": "Class"}, "wrapper"),
        ({"wrapper": "a:b; c"}, "wrapper"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(request_, named):
    with pytest.raises(RequestError, match=named):
        StudentConfig(inputs=request_)


def test_the_teacher_s_own_architecture_sees_everything():
    with pytest.raises(RequestError, match=r"student\.inputs"):
        StudentConfig(same=True, inputs=[0])


@pytest.mark.parametrize("typed", ["[0,1,4:6]", '{"keep": [0, 1, 4:6]}', "[0, 1, '4:6']", '{"keep": "0,1,4:6"}'])
def test_a_range_on_the_command_line_is_no_number_in_base_sixty(typed):
    """YAML reads 4:6 as 246."""
    parser = Parser("distill_policy")
    parser.add_class_arguments(DistillConfig)
    for arguments in (["--student.inputs", typed], [f"--student.inputs={typed}"]):
        config = parser.config(parser.parse(arguments), DistillConfig)
        assert config.student.view == InputsConfig(keep=(0, 1, 4, 5))


def test_other_settings_beside_a_range_stay_as_they_are():
    assert spelled_out(["--student.inputs", '{"keep": [1:3], "history": 4}']) == ['--student.inputs={"keep": ["1:3"], "history": 4}']


def test_a_config_file_alone_cannot_import_a_wrapper(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("student:\n  inputs: {wrapper: 'os:system'}\n")
    parser = Parser("distill_policy")
    parser.add_class_arguments(DistillConfig)
    with pytest.raises(RequestError, match=r"importing it runs its code: give --student\.inputs"):
        parser.parse(["--config", str(file)])
    (found,) = settings_that_run_code({"student": {"inputs": {"wrapper": "a:B"}}})
    assert found.name == "student.inputs"
    check_code_is_typed(["--student.inputs=x"], parser.parse(["--student.inputs", '{"wrapper": "a:B"}']))


def test_ranges_name_a_bounded_number_of_components():
    """A small file could otherwise fill the memory before the repetition is seen."""
    tracemalloc.start()
    with pytest.raises(RequestError, match="indices at most"):
        parse_inputs({"keep": ["0:1000000"] * 30})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_options_that_run_code_can_be_pasted():
    for name in ("extractor", "teacher_extractor"):
        (found,) = settings_that_run_code({name: "my nets/it's.py:Net"})
        assert shlex.split(found.option) == [f"--{name}", "my nets/it's.py:Net"]
