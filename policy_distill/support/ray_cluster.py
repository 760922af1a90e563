"""A Ray cluster: the connection, and objects on its machines. Ray is an extra and is imported only where it was asked for."""

from __future__ import annotations

import logging
import pickle
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from policy_distill.config import EngineConfig, Fault, RequestError
from policy_distill.support.pending import Pending
from policy_distill.support.untrusted import reason

SECONDS_TO_CONNECT = 10.0


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
        if address is not None and (place := re.fullmatch(r"([\w.-]+):(\d+)", address)):  # Ray itself waits for minutes
            socket.create_connection((place[1], int(place[2])), SECONDS_TO_CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise RequestError(
            f"no Ray cluster answers at {address or 'this machine'} ({reason(error)}): start one with ray start --head, and join it from "
            "other machines with ray start --address HOST:PORT"
        ) from None
    if in_main_thread:  # Ray installs its own handler
        signal.signal(signal.SIGTERM, handler)
    return ray


def is_connected() -> bool:
    """Whether this process belongs to a Ray cluster. It then has threads of Ray, which a fork would leave behind."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def room(engine: EngineConfig) -> int:
    """Number of processes with the engine's resources that the whole cluster has room for.

    Raises:
        RequestError: if there is room for none.
    """
    resources = connected(engine.address).cluster_resources()
    count = int(resources.get("CPU", 0) // engine.cpus)
    if engine.gpus:
        count = min(count, int(resources.get("GPU", 0) // engine.gpus))
    if not count:
        asked = f"{engine.cpus:g} cores" + (f" and {engine.gpus:g} GPUs" if engine.gpus else "")
        raise RequestError(f"the Ray cluster has no room for {asked}: lower --engine.cpus or --engine.gpus, or add machines")
    return count


class Actor:
    """An object in a process on a machine that Ray chooses, which runs calls of its methods in order.

    Messages are plain pickles, as between local processes, so that a result is the same bit for bit.

    Args:
        engine: the cluster, and what to reserve for the process.
        make: makes the object there; it is pickled with its arguments.
        arguments: arguments of ``make``.
    """

    def __init__(self, engine: EngineConfig, make: Callable[..., Any], *arguments: Any) -> None:
        self._ray = connected(engine.address)
        kind = self._ray.remote(_Resident).options(num_cpus=engine.cpus, num_gpus=engine.gpus, scheduling_strategy="SPREAD")
        self._actor = kind.remote(pickle.dumps((make, arguments)))

    def submit(self, method: str, *arguments: Any) -> Pending[Any]:
        """Call a method. Reading the result raises what the method raised.

        Raises:
            Fault: when the result is read, if the machine was lost.
        """
        reference = self._actor.call.remote(pickle.dumps((method, arguments)))
        return Pending(lambda: self._result(reference))

    def _result(self, reference: Any) -> Any:
        try:
            failed, result = pickle.loads(self._ray.get(reference))
        except self._ray.exceptions.RayActorError as error:
            raise Fault(f"a worker on the Ray cluster was lost: {' '.join(str(error).split())}") from None
        if failed:
            raise result
        return result

    def close(self) -> None:
        """End the process."""
        self._ray.kill(self._actor)


class _Resident:
    """What Ray keeps in the process."""

    def __init__(self, made: bytes) -> None:
        make, arguments = pickle.loads(made)
        self._object = make(*arguments)

    def call(self, message: bytes) -> bytes:
        method, arguments = pickle.loads(message)
        try:
            return pickle.dumps((False, getattr(self._object, method)(*arguments)))
        except Exception as error:  # raised again by the caller
            return pickle.dumps((True, error))
