"""Suppression of known, harmless warnings of simulators."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_known_warnings() -> Iterator[None]:
    """Suppress warnings that an environment is out of date, that bounds are cast to float32, and of how Box2D was compiled.

    The warning that a vector environment lacks its autoreset mode is suppressed too: ``vector`` checks the mode itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*precision lowered by casting to float32", UserWarning)
        warnings.filterwarnings("ignore", r".*missing AutoresetMode metadata", UserWarning)
        warnings.filterwarnings("ignore", r".*The environment \S+ is out of date", DeprecationWarning)
        warnings.filterwarnings("ignore", r"builtin type \w+ has no __module__ attribute", DeprecationWarning)
        yield


@contextlib.contextmanager
def quiet_missing_seaborn() -> Iterator[None]:
    """Suppress MinAtar's warning at its import, through the root logger, that it cannot render without seaborn."""
    missing = logging.Filter()
    missing.filter = lambda record: "seaborn" not in record.getMessage()  # type: ignore[method-assign]
    logging.root.addFilter(missing)
    try:
        yield
    finally:
        logging.root.removeFilter(missing)


@contextlib.contextmanager
def quiet_mujoco(needed: bool) -> Iterator[None]:
    """Suppress MuJoCo's messages, in the terminal and in a file, about a deprecated attribute in Gymnasium's own models."""
    if not needed or importlib.util.find_spec("mujoco") is None:
        yield
        return
    mujoco = importlib.import_module("mujoco")
    mujoco.set_mju_user_warning(lambda message: None if "is deprecated" in str(message) else warnings.warn(str(message), stacklevel=2))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)
