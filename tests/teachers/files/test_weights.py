"""Weights are read as PyTorch reads them, and their declared sizes are checked against the bytes that are there."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.support.untrusted import refuse_damage
from policy_distill.teachers.files import weights as weights_module
from policy_distill.teachers.files.weights import read_weights
from tests.fuzz.corpus import zip_of

SHARED = torch.arange(12.0)
WEIGHTS = OrderedDict(
    matrix=torch.arange(6.0).reshape(2, 3),
    turned=torch.arange(6.0).reshape(2, 3).t(),
    part=SHARED[4:8],
    other_part=SHARED[::2],
    scalar=torch.tensor(2.5),
    none=torch.zeros(0, 3),
    integers=torch.tensor([1, -2]),
    half=torch.tensor([0.5], dtype=torch.float16),
    brain=torch.tensor([0.5], dtype=torch.bfloat16),
    flags=torch.tensor([True, False]),
    parameter=torch.nn.Parameter(torch.ones(3)),
)


def saved(weights: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_they_are_what_pytorch_reads(zipped):
    content = saved(WEIGHTS, zipped=zipped)
    found, expected = read_weights(content), torch.load(io.BytesIO(content), weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_agents_from_the_field_are_read_bit_for_bit(real_teachers: Path):
    for path in sorted(real_teachers.rglob("*.zip")):
        content = zipfile.ZipFile(path).read("policy.pth")
        found, expected = read_weights(content), torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def edited(content: bytes, *pairs: tuple[bytes, bytes]) -> bytes:
    """The zip with bytes of its pickle replaced."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    for old, new in pairs:
        assert old in members[name]
        members[name] = members[name].replace(old, new, 1)
    return zip_of(members)


class Calls:
    """Asks for a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PLAIN = saved({"weight": torch.ones(100, 2)})
HOSTILE = {
    "a stride of zero": saved({"weight": torch.ones(1).expand(1 << 40)}),
    "a storage that is said to be longer": edited(PLAIN, (b"Kd", b"J\xff\xff\xff\x7f")),
    "an offset behind the end": edited(PLAIN, (b"QK\x00", b"QJ\xff\xff\xff\x7f")),
    "a negative offset": edited(PLAIN, (b"QK\x00", b"QJ\xff\xff\xff\xff")),
    "a call": zip_of({"archive/data.pkl": pickle.dumps({"weight": Calls(print, "run")}, 2)}),
    "ten billion bytes": zip_of({"archive/data.pkl": pickle.dumps({"weight": Calls(bytearray, 10**10)}, 2)}),
    "a call in place of a storage": edited(PLAIN, (b"ctorch\nFloatStorage\n", b"cos\nsystem\n")),
    "a shape of tuples inside tuples": edited(PLAIN, (b"KdK\x02\x86", b"N" + b"2\x86" * 80)),
    "no dict": saved([torch.ones(3)]),
    "no tensors": saved({"weight": 3}),
    "a nested dict": saved({"weight": {"inner": torch.ones(1)}}),
    "sparse": saved({"weight": torch.eye(3).to_sparse()}),
    "big-endian": zip_of({"archive/data.pkl": b"}.", "archive/byteorder": b"big"}),
    "no records": zip_of({"archive/data.pkl": zipfile.ZipFile(io.BytesIO(PLAIN)).read("archive/data.pkl")}),
    "no pickle": zip_of({"letter.txt": b""}),
    "a pickle alone": pickle.dumps({"weight": 1}),
    "nothing": b"",
    "the old format, cut": saved({"weight": torch.ones(100)}, zipped=False)[:-8],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain_or_not_there_is_refused(name):
    with pytest.raises(RequestError, match=r"^policy\.pth cannot be read"), refuse_damage("policy.pth", "save it again"):
        read_weights(HOSTILE[name])


def test_all_tensors_together_are_bounded(monkeypatch):
    content = saved({f"{index}": SHARED for index in range(100)})  # 48 bytes that a hundred tensors share
    assert len(read_weights(content)) == 100
    monkeypatch.setattr(weights_module, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ValueError, match="a shape of more than"):
        read_weights(content)
