"""examples/browser: CartPole in JavaScript is Gymnasium's, and the page plays it with an exported policy in a headless browser."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.export import onnx as onnx_format
from policy_distill.export import onnx_int8
from policy_distill.export.folded import fold_student
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from tests.export.alike import rows_for

PAGE = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DYNAMICS = """
import {{ CartPole }} from "{page}/cartpole.js";
const world = new CartPole();
world.state = {state};
const states = {actions}.map((action) => {{ world.step(action); return [...world.state, Number(world.over)]; }});
console.log(JSON.stringify(states));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_world_is_gymnasium_s():
    env, actions, expected = gym.make("CartPole-v1").unwrapped, [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], []
    env.reset(seed=3)
    start = list(map(float, env.state))  # type: ignore[attr-defined]
    for action in actions:
        _, _, over, _, _ = env.step(action)
        expected.append([*env.state, float(over)])  # type: ignore[attr-defined]
        if over:
            break
    assert expected[-1][-1]
    code = DYNAMICS.format(page=PAGE, state=json.dumps(start), actions=json.dumps(actions[: len(expected)]))
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the page with its package, served on a free port of this machine; yields the folder and its address."""
    if CHROMIUM is None or shutil.which("npm") is None:
        pytest.skip("chromium or npm is not installed")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "*.onnx"))
    if not (folder / "node_modules").is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        if subprocess.run(command, cwd=folder, capture_output=True, timeout=240, check=False).returncode:
            pytest.skip("npm cannot install onnxruntime-web")
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def linear_policy(weights: list[float]) -> Student:
    """Pushes to the right where the weighted sum of the observation is positive."""
    space = gym.make("CartPole-v1").observation_space
    student = Student(Architecture(space, gym.spaces.Discrete(2), ()))
    with torch.no_grad():
        (layer,) = student.linears
        layer.weight.copy_(torch.tensor([[0.0] * 4, weights]))
        layer.bias.copy_(torch.tensor([1e-6, 0.0]))
    return student.eval().requires_grad_(False)


def shown_by(address: str, folder: Path) -> str:
    """The page's text after some seconds of its own time."""
    profile = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *profile, "--virtual-time-budget=20000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize(("weights", "low", "high"), [([0.1, 0.3, 3.0, 1.0], 500, 500), ([0.0] * 4, 8, 11)], ids=["balance", "left"])
def test_the_page_plays_with_the_policy(weights, low, high, bits, site, tmp_path):
    folder, address = site
    student = linear_policy(weights)
    if bits == 8:
        onnx_int8.write(fold_student(student), folder, rows_for(student, 100)[1])
    else:
        onnx_format.write(fold_student(student), folder)
    text = shown_by(f"{address}/index.html?fast=1&seed=1", tmp_path)
    returns = re.search(r'id="returns">([\d, ]+)<', text)
    assert returns is not None, text
    played = list(map(int, returns[1].split(",")))
    assert len(played) >= 2
    assert all(low <= score <= high for score in played)


@pytest.mark.slow
def test_a_missing_policy_is_said(site, tmp_path):
    assert "It cannot play: nothing.onnx is not there (404)" in shown_by(f"{site[1]}/index.html?policy=nothing.onnx", tmp_path)
