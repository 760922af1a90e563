"""Pickles as data: nothing runs, and neither time nor memory runs out."""

from __future__ import annotations

import pickle
import struct
import time

import pytest

from policy_distill.teachers.files.inert import MAX_NAMES, MAX_OPERATIONS, Inert, load_inert


def test_calls_and_what_is_set_are_recorded():
    found = load_inert(b"cos\nsystem\n(S'echo'\ntR.")
    assert isinstance(found, Inert)
    assert (found.name, found.args) == ("os.system", ("echo",))
    found = load_inert(b"cc\nD\n)R(S'k'\nI1\nu.")
    assert found.entries == {"k": 1}


HASHED = b"(" + b"t2\x86" * 1 + b"2\x86" * 80
"""A tuple of a tuple twice, eighty times: to hash it would take 2**80 steps."""


@pytest.mark.parametrize(
    "content",
    [
        b"}" + HASHED + b"I1\ns.",
        b"}(" + HASHED + b"I1\nu.",
        b"(" + HASHED + b"I1\nd.",
        b"\x8f(" + HASHED + b"\x90.",
        b"(" + HASHED + b"\x91.",
        b"}" + b")" + b"\x85" * 100_000 + b"I1\ns.",  # hashing it would overflow the stack of C
        b"2" * 10,
        b"\x82\x01.",
        b"\x96" + struct.pack("<Q", 10**12) + b".",
        b"\x8d" + struct.pack("<Q", 10**12) + b".",
        b"\x95" + struct.pack("<Q", 10**12) + b".",
        b"]" * (MAX_OPERATIONS + 1) + b".",
        b"".join(f"cm\nn{index}\n0".encode() for index in range(MAX_NAMES + 1)) + b"N.",
        b"I" + b"9" * 5000 + b"\n.",
        pickle.dumps(list(range(10)))[:-5],
    ],
)
def test_what_would_take_time_or_memory_is_refused(content):
    started = time.process_time()
    with pytest.raises(Exception):  # noqa: B017, PT011  (the pickle decides which)
        load_inert(content)
    assert time.process_time() - started < 5


def test_plain_keys_are_read():
    data = {"a": 1, 2: "b", (1, "c"): None, b"d": {1.5, "e"}}
    assert load_inert(pickle.dumps(data)) == data
