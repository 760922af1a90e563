"""What holds for every test: one torch thread, reproducible examples, the small environments known to Gymnasium, and a cache of its own."""

from __future__ import annotations

import signal

import hypothesis
import pytest
import torch

import tests.small_worlds  # noqa: F401  (registers them)

torch.set_num_threads(1)
hypothesis.settings.register_profile("stable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("stable")


def pytest_configure():
    """Tests send signals to themselves and to processes of theirs, which inherit what nohup and a shell's background jobs ignore."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_session(tmp_path_factory):
    """For what is run once for several tests: the user's own cache is never touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test finds what another one left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
