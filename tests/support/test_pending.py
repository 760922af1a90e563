"""An answer is waited for once, and not before it is read."""

from __future__ import annotations

from policy_distill.support.pending import Pending


def test_an_answer_is_waited_for_once_and_only_when_read():
    asked = []

    def wait():
        asked.append(1)
        return 20

    pending = Pending(wait)
    doubled = pending.then(lambda answer: 2 * answer)
    assert asked == []
    assert (doubled.result(), pending.result(), doubled.result()) == (40, 20, 40)
    assert asked == [1]
    assert Pending.known(3).result() == 3
    assert Pending.together([pending, Pending.known(1)]).result() == [20, 1]
