"""The agents that ship with the project are read from plain data and earn what their cards say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from policy_distill.config import RequestError
from policy_distill.environments.specs import data_dir, make
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for

AGENTS = data_dir("agents")
SHIPPED = {str(card.parent.relative_to(AGENTS)): card.parent for card in sorted(AGENTS.glob("*/*/card.json"))}
EPISODES = 6


def test_the_kinds_that_other_tests_rely_on_ship():
    assert {"ppo_lstm/CartPoleNoVel-v1_1", "ppo_mask/SingleMachine-v0_1", "ppo/BitFlippingEnv-v0_1", "ppo/MinAtar-Breakout-v1_1"} <= {
        *SHIPPED
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_an_agent_earns_what_its_card_says(name):
    """On its card's first seeds, within four standard errors of so few episodes."""
    card = json.loads((SHIPPED[name] / "card.json").read_text())
    extractor = f"{AGENTS / 'minatar.py'}:MinAtarNetwork" if card["env"].startswith("MinAtar/") else None
    teacher = Teacher.load(SHIPPED[name], extractor=extractor)
    assert teacher.algo == card["algo"]
    spec, _ = environment_for(teacher, None)
    try:
        make(spec).close()
    except RequestError as error:
        pytest.skip(str(error))
    returns = evaluate(teacher, spec, range(card["first_seed"], card["first_seed"] + EPISODES)).returns
    assert abs(returns.mean() - card["return_mean"]) <= 4 * card["return_std"] / math.sqrt(EPISODES) + 1e-9


@pytest.mark.parametrize("name", SHIPPED)
def test_a_page_stands_beside_its_card(name):
    card, page = json.loads((SHIPPED[name] / "card.json").read_text()), Path(SHIPPED[name] / "README.md").read_text()
    assert f"{card['episodes']} deterministic episodes" in page
    assert card["command"] in page
