"""What a few steps before the work find out."""

from __future__ import annotations

import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.probe import Probe, probe
from tests import rude_worlds as rude
from tests.rude_worlds import Polite, spec_of
from tests.small_worlds import WORLDS


@pytest.mark.parametrize("spec", [spec for spec, _ in WORLDS.values()] + [EnvironmentSpec("CartPole-v1"), spec_of(Polite)])
def test_an_environment_that_follows_its_seed_is_left_in_peace(spec):
    found = probe(spec)
    assert found == Probe(spec.id)
    assert found.notices == ()
    found.require_repeatable()


@pytest.mark.parametrize("kind", [rude.NoSeed, rude.SeedOnly, rude.DrawsGlobally])
def test_what_is_seeded_for_it_is_repeatable(kind):
    assert probe(spec_of(kind)).ignores_seed is None


@pytest.mark.parametrize(("kind", "where"), [(rude.DrawsGloballyInSteps, "step 1"), (rude.Clock, "reset")])
def test_one_that_ignores_its_seed_is_reported_and_gets_no_certificate(kind, where):
    found = probe(spec_of(kind))
    assert found.ignores_seed == f"seed 3000000 twice, {where}: another observation"
    (notice,) = found.notices
    assert "cannot be repeated" in notice
    with pytest.raises(RequestError, match=r"does not follow its seed .* so a certificate's episodes could not be repeated"):
        found.require_repeatable()


def test_one_without_an_end_is_reported_before_the_work():
    (notice,) = probe(spec_of(rude.Endless)).notices
    assert "has no time limit" in notice
    assert "--max-episode-steps" in notice
    assert not probe(EnvironmentSpec("tests/Endless-v0", max_episode_steps=30)).notices


@pytest.mark.parametrize("kind", [rude.OldReset, rude.OldStep, rude.Column, rude.Breaks, rude.Scenarios, rude.InfiniteObservation])
def test_what_cannot_be_run_is_a_wrong_request_in_one_line(kind):
    with pytest.raises(RequestError, match=rf"tests/{kind.__name__}-v0, seed 300000\d, ") as caught:
        probe(spec_of(kind))
    assert "\n" not in str(caught.value)


def test_one_that_hangs_is_a_wrong_request_too(monkeypatch):
    with pytest.raises(RequestError, match=r"tests/HangsAtOnce-v0, seed 3000000, reset: reset has not returned for more than 0\.3 s"):
        probe(EnvironmentSpec("tests/HangsAtOnce-v0"), step_timeout=0.3)


def test_the_caller_s_random_numbers_are_not_touched():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    probe(spec_of(rude.DrawsGloballyInSteps))
    assert np.random.random() == expected  # noqa: NPY002
