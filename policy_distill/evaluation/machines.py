"""Whether the machines of one job or study would compute the same."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from policy_distill.config import RequestError
from policy_distill.environments.specs import data_dir
from policy_distill.evaluation.return_cache import SOURCES
from policy_distill.evaluation.rounding import rounding
from policy_distill.support.untrusted import sha256


@dataclass(frozen=True)
class Machine:
    """A machine's name, the code that it runs, and how it rounds.

    Attributes:
        name: the host's name.
        code: hashes of the sources and of the entries of envs/.
        rounding: see ``evaluation.rounding``.
    """

    name: str
    code: tuple[str, ...]
    rounding: str

    def check(self, others: Sequence[Machine]) -> tuple[str, ...]:
        """Notices about the machines that work for this one.

        Raises:
            RequestError: if one of them runs other code.
        """
        for other in others:
            if other.code != self.code:
                raise RequestError(
                    f"{other.name} has other code of policy-distill or Gymnasium than {self.name}: install the same versions on all"
                )
        rounded = sorted({other.name for other in others if other.rounding != self.rounding})
        if not rounded:
            return ()
        return (
            f"{', '.join(rounded)} rounds differently from {self.name}: the student may differ from that of one machine in its last bits",
        )


def this_machine() -> Machine:
    entries = tuple(sha256(path) for path in sorted(data_dir("envs").glob("*.yaml")))
    return Machine(platform.node(), (*SOURCES.values(), *entries), rounding())
