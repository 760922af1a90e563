"""Machines that work for one job: other code is refused, other rounding is noted."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from policy_distill.config import RequestError
from policy_distill.evaluation.machines import this_machine


def test_a_machine_of_the_same_code_and_rounding_needs_no_word():
    here = this_machine()
    assert here.check([dataclasses.replace(pickle.loads(pickle.dumps(here)), name="other")]) == ()


def test_other_code_is_refused_and_other_rounding_noted():
    here = dataclasses.replace(this_machine(), name="here")
    with pytest.raises(RequestError, match="there has other code of policy-distill or Gymnasium than here: install the same versions"):
        here.check([here, dataclasses.replace(here, name="there", code=("0", *here.code[1:]))])
    (notice,) = here.check([here, *[dataclasses.replace(here, name=name, rounding="0") for name in ("b", "a", "b")]])
    assert notice.startswith("a, b rounds differently from here")
