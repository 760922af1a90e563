"""Reading of untrusted files: sizes are bounded, and every kind of damage becomes a ``RequestError``.

Limits apply to the bytes that are read, never to the size that a file declares. Only regular files are opened: a pipe or a device might
never end.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from policy_distill.config import RequestError
from policy_distill.config.printable import one_line

MAX_JSON_BYTES = 8 << 20
"""Nested lists take fifty times the size of their text once parsed."""
MAX_YAML_BYTES = 32 << 10
"""PyYAML needs about a second for this size; a run's settings have some hundred bytes."""
MAX_YAML_ALIASES = 10
"""Without a limit, a few lines of nested aliases can expand to billions of entries."""
MAX_ELEMENTS = 1 << 20
"""Maximum number of elements of a space, a flattened observation or a wrapper's output."""
MAX_DIMENSIONS, MAX_BITS = 32, 1024
MAX_DIRECTORY_BYTES = 4 << 20
"""Maximum size of a zip's central directory, which has 46 bytes and a name for each member."""


@contextmanager
def refuse_damage(source: str | Path, fix: str, kind: type[RequestError] = RequestError) -> Iterator[None]:
    """Turn any exception while a file is read into a ``RequestError`` that names the file.

    A damaged or hostile file can raise almost anything: ``OSError``, ``RecursionError``, ``OverflowError``, ``MemoryError``, or a parser's
    own exceptions. The context must contain only the reading, so that bugs elsewhere are not reported as a damaged file.

    Args:
        source: the file.
        fix: what the user can do, in a few words.
        kind: class of the error.
    """
    try:
        with warnings.catch_warnings():  # parsers' warnings would print lines of the file
            warnings.simplefilter("ignore")
            yield
    except RequestError:
        raise
    except Exception as error:
        raise kind(f"{source} cannot be read ({reason(error)}): {fix}") from error


def reason(error: Exception) -> str:
    """An exception's message as one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, 160) or type(error).__name__


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: if it is a folder, a pipe or a device, or cannot be opened.
        ValueError: if the path contains a NUL byte.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))  # a pipe would wait for a writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes.

    Raises:
        OSError, ValueError: if it is not a regular file, or larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than the {limit:,} bytes that are read")
    return content


def sha256(path: str | Path, limit: int | None = None) -> str:
    """SHA-256 of a regular file's contents, in hexadecimal.

    Args:
        path: the file.
        limit: its maximum size in bytes; None: any size, of a file that is not from outside.

    Raises:
        OSError, ValueError: if it is not a regular file, or larger.
    """
    with open_regular(path) as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"it is larger than the {limit:,} bytes that are read")
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | Path, limit: int) -> str:
    """``read_bytes`` decoded as UTF-8."""
    return read_bytes(path, limit).decode("utf-8")


def read_json(path: str | Path, fix: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RequestError: if the file is missing, damaged, too large, or contains no object.
    """
    with refuse_damage(path, fix):
        return parse_json_object(read_bytes(path, limit))


def parse_json_object(content: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError, RecursionError: if the text is not a JSON object.
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return data


def read_yaml(path: str | Path, fix: str) -> Any:
    """The plain data in a YAML file; Python tags are refused.

    Raises:
        RequestError: if the file is missing, damaged or too large.
    """
    with refuse_damage(path, fix):
        return yaml.load(read_text(path, MAX_YAML_BYTES), Loader=BoundedLoader)


class BoundedLoader(yaml.SafeLoader):
    """YAML loader for plain data with a limited number of aliases and without recursive ones."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self.aliases += is_alias
        if self.aliases > MAX_YAML_ALIASES:
            raise yaml.YAMLError("too many aliases")
        node = super().compose_node(parent, index)
        if is_alias and node is not None and node.end_mark is None:  # it has not ended yet
            raise yaml.YAMLError("a recursive alias")
        return node


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """An integer of limited size: Python parses hexadecimal integers of any length, but refuses to print them."""
    number = yaml.SafeLoader.construct_yaml_int(loader, node)
    if number.bit_length() > MAX_BITS:
        raise ValueError(f"a number of more than {MAX_BITS} bits")
    return number


BoundedLoader.add_constructor("tag:yaml.org,2002:int", _number)


def element_count(shape: Iterable[Any], limit: int = MAX_ELEMENTS) -> int:
    """Number of elements of an array of this shape, computed before anything is allocated.

    Raises:
        ValueError: if it is not a valid shape, or has more than ``limit`` elements.
    """
    sizes = list(shape)
    if len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(sizes)} dimensions")
    count = 1
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
            raise ValueError(f"a shape holds a {type(size).__name__}, or less than 0")  # printing deeply nested tuples may never end
        count *= int(size)
        if count > limit or size > max(limit, MAX_ELEMENTS):
            raise ValueError(f"a shape of more than {limit:,} elements")
    return count


def is_shallow(value: Any, levels: int) -> bool:
    """Whether containers are nested at most ``levels`` deep; deeper ones can be parsed, but not printed or copied."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, list | tuple) or (levels > 0 and all(is_shallow(item, levels - 1) for item in value))


def number_type(name: object) -> np.dtype:
    """The numeric dtype of this name, such as ``float32``.

    Raises:
        ValueError: for any other name; ``np.dtype`` itself accepts far more than names of numeric types.
    """
    if name not in _NUMBER_TYPES:
        raise ValueError(f"{one_line(repr(name), 40)} is no type of numbers")
    return np.dtype(str(name))


_NUMBER_TYPES = frozenset(
    ["bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)


class _Zip(io.BufferedReader):
    """A file whose single reads are bounded while ``limit`` is set, because ``zipfile`` reads a directory of any length at once."""

    limit: int | None = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is None:
            return super().read(size)
        if size is not None and size > self.limit:
            raise zipfile.BadZipFile("its directory is too long")
        return super().read(self.limit if size is None or size < 0 else size)


@contextmanager
def open_zip(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose central directory has a bounded size.

    Raises:
        zipfile.BadZipFile, OSError, ValueError: if it is not a zip, or its directory is larger.
    """
    bounded = _Zip(file)  # type: ignore[arg-type]
    try:
        with zipfile.ZipFile(bounded) as archive:
            bounded.limit = None
            yield archive
    finally:
        bounded.detach()


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of a zip, unpacked to at most ``limit`` bytes regardless of its declared size.

    Raises:
        ValueError: if it unpacks to more, is encrypted, or uses a method other than store and deflate.
        zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, NotImplementedError: if it is damaged or missing.
    """
    info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise ValueError(f"the member {name!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"the member {name!r} is compressed by an unsupported method; store and deflate are supported")
    if info.file_size > limit:
        raise ValueError(f"the member {name!r} unpacks to {info.file_size:,} bytes, more than the {limit:,} that are read")
    with archive.open(info) as stream:
        content = stream.read(limit + 1)
    if len(content) != info.file_size:
        raise ValueError(f"the member {name!r} is not as long as the zip says")
    return content


def read_npz(path: str | Path, names: Sequence[str] | None, limit: int) -> Mapping[str, np.ndarray]:
    """Read-only arrays of an ``.npz``, at most ``limit`` bytes in total; all of them if ``names`` is None.

    Raises:
        ValueError, OSError, ...: any exception of the parsers; see ``refuse_damage``.
    """
    arrays = {}
    with open_regular(path) as file, open_zip(file) as archive:
        for name in names or [member.removesuffix(".npy") for member in archive.namelist()]:
            content = read_member(archive, f"{name}.npy", limit)
            limit -= len(content)
            arrays[name] = _array(content)
    return arrays


def _array(content: bytes) -> np.ndarray:
    """The array of a ``.npy``. numpy's own reader would allocate whatever size the header declares."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"arrays of version {version} are not supported")
    if dtype.kind not in "biufU" or not dtype.itemsize:
        raise ValueError(f"an array of {dtype}, which is not numeric")
    start = file.tell()
    if element_count(shape, len(content)) * dtype.itemsize != len(content) - start:
        raise ValueError("an array's bytes do not fit its shape")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
