"""The commands: exit codes, one line for a wrong request, and JSON that is nothing but JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from policy_distill.commands import cli
from policy_distill.commands.cli import COMMANDS, main
from policy_distill.config import DistillConfig, RequestError
from policy_distill.export.sb3 import save_ppo
from policy_distill.policies.student import Student
from policy_distill.studies.scheduler import jobs
from tests import rude_worlds as rude
from tests.small_worlds import WALK, random_student, walk_expert

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--device", "cpu", "--workers", "0", "--student.hidden_sizes", "[8]", "--collect.env_steps", "200", "--collect.rounds", "2"),
    *("--collect.num_envs", "4", "--train.gradient_steps", "50", "--train.batch_size", "32", "--evaluate.episodes", "6"),
    *("--evaluate.validation_episodes", "3", "--polish.below", "0"),
]


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> str:
    """A zip in the RL Zoo's layout."""
    folder = tmp_path_factory.mktemp("agents") / "ppo" / "Walker_1"
    folder.mkdir(parents=True)
    return str(save_ppo(walk_expert(), folder / "Walker.zip"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must refuse, and return its one line."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in lines[0]
    assert lines[0].startswith("policy-distill: ")
    return lines[0]


# Wrong requests.


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    line = refused(capsys, "distil_policy")
    assert "'distil_policy'" in line
    assert "did you mean 'distill_policy'?" in line


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--student.hiden_sizes=[8]", "student.hidden_sizes"),
        ("--collect.env_step=100", "collect.env_steps"),
        ("--lose.temperature=2", "loss.temperature"),
        ("--teachr=x", "teacher"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(option, nearest, capsys, expert):
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, option)
    assert option.lstrip("-").partition("=")[0] in line
    assert f"did you mean '{nearest}'?" in line


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("loss.temperature", "-1.0", "> 0"),
        ("loss.hard_weight", "1.5", "[0, 1]"),
        ("collect.rounds", "0", ">= 1"),
        ("train.learning_rate", "0.0", "> 0"),
        ("train.holdout", "0.9", "[0, 0.5]"),
        ("polish.below", "-0.5", ">= 0"),
        ("evaluate.episodes", "1", ">= 2"),
        ("evaluate.confidence", "2.0", "[0.5, 1)"),
        ("seed", "-1", ">= 0"),
        ("workers", "-3", ">= 0"),
        ("loss.kind", "mse", "regression"),
        ("student.activation", "gelu", "silu"),
    ],
)
def test_a_value_out_of_range_is_refused_by_field_value_and_range(option, value, allowed, capsys, expert):
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, f"--{option}={value}")
    assert option.rpartition(".")[2] in line
    assert value in line
    assert allowed in line


def test_a_member_s_settings_are_refused_as_others_are(capsys, expert):
    begin = ("distill_policy", "--teacher", expert, "--env", WALK.id)
    line = refused(capsys, *begin, '--train.vary=[{"hard_weight": -0.5}]')
    assert "train.vary: hard_weight is -0.5; it must be in [0, 1]" in line
    line = refused(capsys, *begin, '--train.vary=[{"lerning_rate": 3}]')
    assert "train.vary" in line
    assert "no option 'lerning_rate' (did you mean 'learning_rate'?)" in line


@pytest.mark.parametrize(("option", "value"), [("collect.env_steps", "many"), ("train.learning_rate", "fast"), ("seed", "1.5")])
def test_a_value_of_another_type_is_refused_by_field_and_value(option, value, capsys, expert):
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, f"--{option}={value}")
    assert option.rpartition(".")[2] in line
    assert value in line


def test_sections_that_do_not_fit_together_are_refused(capsys, expert):
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, "--collect.rounds=30", "--train.gradient_steps=20")
    assert "train.gradient_steps is 20" in line


@pytest.mark.parametrize("command", ["distill_policy", "evaluate_policy", "check_teacher"])
def test_a_teacher_that_is_not_there_is_refused_by_name(command, capsys, tmp_path):
    option = "--policy" if command == "evaluate_policy" else "--teacher"
    assert "nowhere.zip" in refused(capsys, command, option, str(tmp_path / "nowhere.zip"), "--env", WALK.id)
    assert "ppo/NoSuchWorld-v7" in refused(capsys, command, option, "ppo/NoSuchWorld-v7")


def test_a_file_that_is_no_agent_is_refused_by_name(capsys, tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"not a zip")
    assert "broken.zip" in refused(capsys, "distill_policy", "--teacher", str(tmp_path / "broken.zip"), "--env", WALK.id)


def test_no_teacher_at_all_is_refused_with_the_way_to_name_one(capsys):
    assert "--teacher" in refused(capsys, "distill_policy")


def test_an_unknown_environment_is_refused_by_name(capsys, expert):
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", "tests/Wolk-v0")
    assert "tests/Wolk-v0" in line
    assert "tests/Walk-v0" in line


def test_an_agent_that_does_not_tell_its_environment_needs_one(capsys, expert, tmp_path):
    copy = tmp_path / "agent.zip"
    copy.write_bytes(Path(expert).read_bytes())
    assert "--env" in refused(capsys, "distill_policy", "--teacher", str(copy))


def test_an_environment_of_another_shape_is_refused(capsys, expert):
    assert "CartPole-v1" in refused(capsys, "distill_policy", "--teacher", expert, "--env", "CartPole-v1")


def test_an_output_that_cannot_be_written_is_refused(capsys, expert, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, "--output", str(tmp_path / "file" / "run"))
    assert str(tmp_path / "file" / "run") in line
    assert "--output" in line


def test_a_device_that_is_not_there_is_refused(capsys, expert):
    assert "abacus" in refused(capsys, "distill_policy", "--teacher", expert, "--env", WALK.id, "--device", "abacus")


@pytest.mark.parametrize("text", ["student: {hiden_sizes: [8]}", "colour: red"])
def test_an_unknown_key_of_a_file_is_refused(text, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    line = refused(capsys, "distill_policy", "--config", str(tmp_path / "config.yaml"))
    assert text.partition(":")[0] in line


def test_a_file_that_is_not_there_is_refused_by_name(capsys, tmp_path):
    assert "missing.yaml" in refused(capsys, "distill_policy", "--config", str(tmp_path / "missing.yaml"))


def test_a_suite_of_no_teachers_is_refused(capsys, tmp_path):
    assert "no agents" in refused(capsys, "run_suite", "--teachers", str(tmp_path), "--output", str(tmp_path / "out"))
    assert "no such folder" in refused(capsys, "run_suite", "--teachers", str(tmp_path / "none"), "--output", str(tmp_path / "out"))


def test_too_few_episodes_are_refused(capsys, expert):
    line = refused(capsys, "evaluate_policy", "--policy", expert, "--env", WALK.id, "--episodes", "1")
    assert "episodes is 1; it must be >= 2" in line


def test_check_teacher_does_not_measure_on_one_episode(capsys, expert):
    assert "episodes is 1" in refused(capsys, "check_teacher", "--teacher", expert, "--env", WALK.id, "--episodes", "1")


@pytest.mark.parametrize("option", ["--num_envs=0", "--confidence=1.5", "--workers=-1"])
def test_evaluate_policy_refuses_what_the_job_refuses(option, capsys, expert):
    assert option.lstrip("-").partition("=")[0] in refused(capsys, "evaluate_policy", "--policy", expert, "--env", WALK.id, option)


@pytest.mark.parametrize("option", ["--certify=0", "--max_episodes=10"])
def test_a_certificate_that_cannot_be_is_refused(option, capsys, expert):
    line = refused(capsys, "evaluate_policy", "--policy", expert, "--teacher", expert, "--env", WALK.id, "--certify=0.9", option)
    assert option.lstrip("-").partition("=")[0] in line


def test_a_certificate_needs_a_teacher_and_its_output_a_certificate(capsys, expert):
    assert "give --teacher" in refused(capsys, "evaluate_policy", "--policy", expert, "--env", WALK.id, "--certify=0.9")
    assert "give --certify" in refused(capsys, "evaluate_policy", "--policy", expert, "--env", WALK.id, "--output=x")


@pytest.mark.parametrize("option", ["--episodes=-1", "--num_envs=0", "--workers=-1"])
def test_verify_certificate_refuses_what_cannot_be(option, capsys, tmp_path):
    line = refused(capsys, "verify_certificate", "--certificate", str(tmp_path), option)
    assert f"{option.lstrip('-').partition('=')[0]} is" in line


def test_a_certificate_that_is_not_there_is_refused(capsys, tmp_path):
    assert "certificate.json cannot be read" in refused(capsys, "verify_certificate", "--certificate", str(tmp_path))


def test_too_few_replicates_are_refused(capsys):
    assert "replicates is 3" in refused(capsys, "simulate_statistics", "--replicates", "3")


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    if command == "distill_policy":
        assert "--student.hidden_sizes" in shown
        assert "Number of processes that step environments" in shown


def test_the_list_of_commands_is_shown_with_one_sentence_each(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main([]) == 2


def test_every_command_is_a_script():
    for command in COMMANDS:
        assert (ROOT / "scripts" / f"{command}.py").is_file()


def test_a_script_is_the_command():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "distill_policy.py", "--seed=-1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "seed is -1" in done.stderr


# Work.


def test_distill_policy_prints_nothing_but_json_when_asked(capsys, expert, tmp_path):
    assert main(["distill_policy", "--teacher", expert, "--env", WALK.id, "--output", str(tmp_path), *SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out, parse_constant=pytest.fail)
    assert captured.err == ""
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["student"]["hidden_sizes"] == [8]
    assert result["polish"] is None


def test_distill_policy_ends_with_a_table_and_the_folder(capsys, expert, tmp_path):
    assert main(["distill_policy", "--teacher", expert, "--env", WALK.id, "--output", str(tmp_path), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "retention" in shown
    assert shown.rstrip().splitlines()[-1] == str(tmp_path)


def test_a_file_s_values_give_way_to_the_command_line_s(capsys, expert, tmp_path):
    (tmp_path / "config.yaml").write_text(f"teacher: {expert}\nenv: {WALK.id}\nseed: 3\nloss: {{temperature: 2.0}}\n")
    assert main(["distill_policy", "--config", str(tmp_path / "config.yaml"), *SMALL, "--seed=4", "--output", str(tmp_path), "--json"]) == 0
    written = (tmp_path / "config.yaml").read_text()
    assert "seed: 4" in written
    assert "temperature: 2.0" in written


def test_the_rl_zoo_s_short_forms_name_the_teacher(capsys, expert, monkeypatch):
    seen: list[DistillConfig] = []

    def stop(config: DistillConfig, **options: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["policy_distill.pipeline.distill"], "distill", stop)
    zoo = str(Path(expert).parents[2])
    assert main(["distill_policy", "--algo", "ppo", "--env", "Walker", "-f", zoo, "-P", "--seed", "3"]) == 130
    assert seen[0].teacher == str(Path(expert).parent)
    assert seen[0].seed == 3
    assert capsys.readouterr().err == "policy-distill: interrupted\n"


def test_evaluate_policy_measures_student_and_teacher_on_the_same_seeds(capsys, expert, tmp_path):
    expert_student = walk_expert()
    expert_student.save(tmp_path, extra={"environment": WALK.to_dict()})
    arguments = ["--teacher", expert, "--env", WALK.id, "--episodes", "20", "--workers", "0", "--json"]
    assert main(["evaluate_policy", "--policy", str(tmp_path), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"]["returns"] == found["teacher"]["returns"]
    assert found["retention"]["estimate"] == 1.0
    assert found["agreement"] == 1.0
    assert len(found["seeds"]) == 20


def test_a_student_knows_its_environment(capsys, tmp_path):
    student: Student = random_student(walk_expert().observation_space, walk_expert().action_space)
    student.save(tmp_path, extra={"environment": WALK.to_dict()})
    assert main(["evaluate_policy", "--policy", str(tmp_path), "--episodes", "4", "--workers", "0"]) == 0
    assert WALK.id in capsys.readouterr().out


def test_a_certificate_is_written_verified_and_found_out(capsys, expert, tmp_path):
    walk_expert().save(tmp_path, extra={"environment": WALK.to_dict()})
    arguments = ["--teacher", expert, "--certify", "0.9", "--max-episodes", "200", "--workers", "0"]
    assert main(["evaluate_policy", "--policy", str(tmp_path), *arguments]) == 0
    captured = capsys.readouterr()
    assert "certified: the student keeps at least 0.9" in " ".join(captured.out.split())
    assert captured.out.rstrip().splitlines()[-1] == str(tmp_path / "certificate.json")
    assert captured.err.startswith("certify      50 episodes  keeps 0.9: ")
    check = ["verify_certificate", "--certificate", str(tmp_path), "--workers", "0", "--json"]
    assert main(check) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    text = (tmp_path / "certificate.json").read_text()
    (tmp_path / "certificate.json").write_text(text.replace('"share": 0.9', '"share": 0.97'))
    assert main(check) == 1
    assert json.loads(capsys.readouterr().out)["holds"] is False


def test_stochastic_alone_means_true(capsys, expert):
    arguments = ["--policy", expert, "--env", WALK.id, "--episodes", "6", "--workers", "0", "--json"]
    returns = []
    for more in ([], ["--stochastic"]):
        assert main(["evaluate_policy", *arguments, *more]) == 0
        returns.append(json.loads(capsys.readouterr().out)["policy"]["returns"])
    assert returns[0] != returns[1]


def test_simulate_statistics_prints_the_tables(capsys):
    assert main(["simulate_statistics", "--replicates", "16"]) == 0
    assert "| rare falls of the student |" in capsys.readouterr().out
    assert main(["simulate_statistics", "--replicates", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["markdown"].startswith("## False verdicts")


def test_check_teacher_says_what_the_agent_is_and_does(capsys, expert):
    assert main(["check_teacher", "--teacher", expert, "--env", WALK.id, "--episodes", "6", "--workers", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["algorithm"] == "ppo"
    assert found["facts"]["params"] == 1251
    assert found["return_mean"] > found["random_return_mean"]
    assert "better than a random policy" in found["verdict"]


def test_run_suite_reports_the_teacher_that_works_and_the_one_that_does_not(capsys, tmp_path):
    for name in ("Good", "Bad"):
        (tmp_path / "agents" / "ppo" / f"{name}_1").mkdir(parents=True)
    save_ppo(walk_expert(), tmp_path / "agents" / "ppo" / "Good_1" / "Good.zip")
    (tmp_path / "agents" / "ppo" / "Bad_1" / "Bad.zip").write_bytes(b"no zip")
    arguments = [
        "--teachers",
        str(tmp_path / "agents"),
        "--env",
        WALK.id,
        "--output",
        str(tmp_path / "out"),
        *SMALL,
        "--json",
        "--jobs",
        "0",
    ]
    assert main(["run_suite", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["teacher"], row["status"]) for row in rows] == [("ppo/Bad_1", "not supported"), ("ppo/Good_1", "done")]
    before = (tmp_path / "out" / "ppo" / "Good_1" / "result.json").stat().st_mtime_ns
    assert main(["run_suite", *arguments]) == 0
    assert (tmp_path / "out" / "ppo" / "Good_1" / "result.json").stat().st_mtime_ns == before
    assert json.loads(capsys.readouterr().out)["rows"] == rows


def test_square_brackets_are_shown(capsys, monkeypatch, tmp_path):
    """The table took them for markup: the fix read ``pip install "policy-distill"``."""
    (tmp_path / "[agents]").mkdir()
    (tmp_path / "[agents]" / "a.zip").write_bytes(b"")
    reason = 'pip install "policy-distill[box2d]"'

    def fail(config: DistillConfig, display: object) -> None:
        raise RequestError(reason)

    monkeypatch.setattr(jobs, "distill_or_resume", fail)
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "[out]"
    assert main(["run_suite", "--teachers", str(tmp_path / "[agents]"), "--output", str(output), "--jobs", "0"]) == 0
    shown = capsys.readouterr().out
    assert reason in shown
    assert "[agents]" in shown
    assert shown.splitlines()[-1] == str(output)


@pytest.mark.parametrize("command", ["run_suite", "run_ablation", "distill_policy"])
def test_an_engine_that_is_not_there_is_refused(command, capsys, monkeypatch, tmp_path, expert):
    monkeypatch.setitem(sys.modules, "ray", None)
    study = tmp_path / "study.yaml"
    study.write_text(f"title: t\nintroduction: i\nbase: {{}}\nagents: {{one: {{teacher: {expert}}}}}\ngroups: {{}}\nseeds: [0]\n")
    given = {
        "run_suite": ["--teachers", str(Path(expert).parents[1])],
        "run_ablation": ["--study", str(study), "--page", str(tmp_path / "page.md")],
        "distill_policy": ["--teacher", expert, "--env", WALK.id],
    }[command]
    line = refused(capsys, command, *given, "--output", str(tmp_path / "out"), "--engine", "ray", "--address", "auto", "--engine.cpus", "2")
    assert "pip install 'policy-distill[ray]'" in line


def test_what_only_ray_knows_is_refused_without_it(capsys):
    assert "engine.cpus is 2.0" in refused(capsys, "distill_policy", "--teacher", "ppo/CartPole-v1", "--engine.cpus", "2")
    assert "one of ['local', 'ray']" in refused(capsys, "run_suite", "--teachers", ".", "--engine", "slurm")


# Failures of ours.


def test_a_failure_has_its_traceback_and_one_last_line_and_exit_code_one(capsys, monkeypatch):
    def fail(_: object) -> int:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(cli, "command", lambda name: fail)
    assert main(["distill_policy"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "policy-distill: distill_policy failed: by nothing"


@pytest.mark.parametrize("module", ["torch", "policy_distill.config", "yaml"])
def test_ctrl_c_while_modules_are_imported_ends_in_one_line(module):
    """The signal comes at the first line of a module, which is one that takes seconds, or the first or one of the last."""
    program = f"""
import importlib.abc, os, runpy, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["distill_policy.py", "--teacher=nowhere"]
runpy.run_path({str(ROOT / "scripts" / "distill_policy.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "policy-distill: interrupted\n")


def test_what_is_imported_before_ctrl_c_is_handled_takes_no_time():
    program = "import sys, policy_distill.commands.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    assert not {"torch", "numpy", "gymnasium", "jsonargparse", "yaml", "policy_distill.config"} & set(found.stdout.split())


def test_a_fault_of_the_environment_is_one_line_without_a_traceback(capsys, tmp_path):
    agent = str(save_ppo(random_student(rude.Polite.observation_space, rude.Polite.action_space), tmp_path / "ppo.zip"))
    for name, code in (("BreaksLate", 1), ("Breaks", 2)):
        assert main(["evaluate_policy", "--policy", agent, "--env", f"tests/{name}-v0", "--workers", "2"]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1
        assert f"tests/{name}-v0, seed " in lines[0]
