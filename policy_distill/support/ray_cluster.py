"""Connection to a Ray cluster. Ray is an extra and is imported here alone."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from policy_distill.config import RequestError


def connected(address: str | None) -> Any:
    """The module ``ray``, connected to the cluster at ``address``; None: this machine's cluster, else a new one on this machine.

    Raises:
        RequestError: if Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise RequestError("--engine ray needs Ray: pip install 'policy-distill[ray]'") from None
    if ray.is_initialized():
        return ray
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"there is no Ray cluster at {address or 'this machine'} ({error}): start one with ray start --head, and join it from other "
            "machines with ray start --address HOST:PORT"
        ) from None
    if in_main_thread:  # Ray installs its own handler
        signal.signal(signal.SIGTERM, handler)
    return ray
