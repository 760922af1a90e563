"""Nothing that a file declares is believed, and whatever is wrong with it is one line."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.support import untrusted
from policy_distill.support.untrusted import (
    element_count,
    number_type,
    open_regular,
    open_zip,
    read_bytes,
    read_json,
    read_member,
    read_npz,
    read_yaml,
    refuse_damage,
)


def refused(read, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        read()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "input/output"),
        RecursionError("deep"),
        OverflowError("big"),
        MemoryError(),
        KeyError("x"),
        EOFError(),
        ValueError("\x1b[31m"),
    ],
)
def test_every_kind_of_damage_is_one_line(error):
    def read() -> None:
        with refuse_damage("file.zip", "copy it again"):
            raise error

    refused(read, r"^file\.zip cannot be read \(.+\): copy it again$")


def test_a_request_error_inside_stays_as_it_is():
    with pytest.raises(RequestError, match=r"^mine$"), refuse_damage("file.zip", "copy it again"):
        raise RequestError("mine")


def test_interrupting_is_no_damage():
    with pytest.raises(KeyboardInterrupt), refuse_damage("file.zip", "copy it again"):
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):  # a pipe without a writer would wait for ever, a device never end
        with pytest.raises(OSError, match=r"regular file|directory"):
            open_regular(path)
        refused(lambda path=path: read_json(path, "name another"), "cannot be read .*: name another")


@pytest.mark.parametrize("name", ["nul\x00byte", "a" * 5000, "not there", "file/below"])
def test_paths_that_cannot_be(name, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: read_json(f"{tmp_path}/{name}", "name another"), "cannot be read .*: name another")


def test_no_more_is_read_than_the_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than the 4 bytes"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.parametrize(
    "text", [b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b"\xff", b"[1]", b"", b'{"a": ' + b"9" * 5000 + b"}", b"\x00{}"]
)
def test_json_that_is_none(text, tmp_path):
    (tmp_path / "file.json").write_bytes(text)
    refused(lambda: read_json(tmp_path / "file.json", "write it again"), r"file\.json cannot be read .*: write it again")


@pytest.mark.parametrize(
    "text",
    [
        b"a: !!python/object/apply:os.system [echo]", b"[" * 5000, b"a: &a [*a",
        b"a: 0x" + b"f" * 9000, b"a: " + b"1:" * 3000 + b"1",
        b"a: &a [1, {b: *a}]",  b"\xff", b"a: 2001-99-99", b"? [a]\n: b", b"x" * 40_000,
        "\n".join(["b0: &b0 [1]", *(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]" for i in range(1, 30))]).encode(),
    ],
)  # fmt: skip
def test_yaml_that_is_none(text, tmp_path):
    (tmp_path / "file.yaml").write_bytes(text)
    refused(lambda: read_yaml(tmp_path / "file.yaml", "write it again"), r"file\.yaml cannot be read .*: write it again")


@pytest.mark.parametrize("shape", [(10**9,), (2**40, 2**40), (0, 10**30), (-1,), (1.0,), (True,), ("3",), (1,) * 40])
def test_a_shape_is_counted_before_anything_is_allocated(shape):
    with pytest.raises(ValueError, match="a shape"):
        element_count(shape)


def test_ordinary_shapes():
    assert (element_count((3, 4)), element_count(()), element_count((np.int64(5), 0))) == (12, 1, 0)


@pytest.mark.parametrize("name", ["object", "S1000000000", "(1000000000,)f4", "f4,f4", "float128", None, 3, ["float32"]])
def test_types_that_are_no_numbers(name):
    with pytest.raises((ValueError, TypeError)):
        number_type(name)


def test_types_of_numbers():
    assert [number_type(name) for name in ("float32", "uint8", "bool")] == [np.dtype(name) for name in ("float32", "uint8", "bool")]


def zipped(method: int = zipfile.ZIP_DEFLATED, content: bytes = b"x" * 10**6) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("member", content)
    return bytearray(buffer.getvalue())


def member_of(content: bytes | bytearray, limit: int = 2 * 10**6) -> bytes:
    with open_zip(io.BytesIO(content)) as archive:
        return read_member(archive, "member", limit)


def test_a_member_is_read():
    assert member_of(zipped()) == b"x" * 10**6
    assert member_of(zipped(zipfile.ZIP_STORED)) == b"x" * 10**6


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_more_than_they_say_are_not_read(method):
    with pytest.raises(ValueError, match="store and deflate are"):
        member_of(zipped(method))


def test_a_member_that_unpacks_to_more_than_the_limit():
    with pytest.raises(ValueError, match="unpacks to 1,000,000 bytes"):
        member_of(zipped(), 999_999)


@pytest.mark.parametrize("declared", [10, 2_000_000])
def test_a_member_that_lies_about_its_size(declared):
    content = zipped()
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, declared)
    with pytest.raises((ValueError, zipfile.BadZipFile, EOFError)):
        member_of(content)


def test_an_encrypted_member():
    content = zipped()
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="is encrypted"):
        member_of(content)


def test_a_directory_without_end_is_not_read(monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(300):
            archive.writestr(f"{index}", b"")
    with open_zip(io.BytesIO(buffer.getvalue())) as archive:
        assert len(archive.namelist()) == 300
    monkeypatch.setattr(untrusted._Zip, "limit", 10_000)
    with pytest.raises(zipfile.BadZipFile, match="too long"), open_zip(io.BytesIO(buffer.getvalue())):
        pass


def npz(tmp_path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("a.npy", content)
    return tmp_path / "file.npz"


def npy(descr: str, shape: str, content: bytes = b"\x00" * 24) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    arrays: dict[str, Any] = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "b": np.array(3),
        "c": np.array("text"),
        "d": np.zeros((0, 4), np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "file.npz", **arrays)
        found = read_npz(tmp_path / "file.npz", list(arrays), 10_000)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("descr", "shape", "says"),
    [
        ("'<f8'", "(3000000000000,)", "a shape of more than"),
        ("'<f8'", "(4,)", "do not fit"),
        ("'<f8'", "(-3,)", "a shape holds"),
        ("'|O'", "(3,)", "not numeric"),
        ("'<c16'", "(1,)", "not numeric"),
        ("[('a', '<f8')]", "(3,)", "not numeric"),
        ("__import__('os')", "(3,)", "cannot be read"),
        ("'<f8'", "(" * 300, "cannot be read"),
    ],
)
def test_an_array_s_header_is_not_believed(descr, shape, says, tmp_path):
    def read() -> None:
        with refuse_damage("file.npz", "write it again"):
            read_npz(npz(tmp_path, npy(descr, shape)), ["a"], 10_000)

    refused(read, says)


def test_all_arrays_together_are_bounded(tmp_path):
    np.savez_compressed(tmp_path / "file.npz", a=np.zeros(1000), b=np.zeros(1000))
    read_npz(tmp_path / "file.npz", ["a"], 10_000)
    with pytest.raises(ValueError, match="more than the"):
        read_npz(tmp_path / "file.npz", ["a", "b"], 10_000)


def test_a_hash_is_of_a_regular_file_within_the_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-4
    assert untrusted.sha256(tmp_path / "file") == untrusted.sha256(tmp_path / "file", 3) == digest
    with pytest.raises(ValueError, match="larger than the 2 bytes"):
        untrusted.sha256(tmp_path / "file", 2)
    with pytest.raises(OSError, match="no regular file"):
        untrusted.sha256(tmp_path)
