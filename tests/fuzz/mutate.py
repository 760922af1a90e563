"""Damage: bytes that are flipped, cut or spliced, and contents that are well formed and mean harm."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

from tests.fuzz.corpus import CANARY, zip_of

Draw = random.Random
NUMBERS: list[Any] = [0, 1, -1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**12, 10**30, 10**4000, 0.5, 1e308, -1e308, float("inf"), float("nan")]
TEXTS = [
    "", "\x00", "\x1b[31mred\x1b]0;title\x07", "\ud800", "\u202e", "a" * 5000, "../" * 50, "/dev/zero", "/", "~nobody/x", "1e999",
    "9" * 5000,
    f"{CANARY}:Env-v0", f"<class '{CANARY}.Box'>", "<class 'gymnasium.spaces.dict.Dict'>", "<script>alert(1)</script>", "[" * 3000, "|\n#",
    "(1000000000,)f4", "O", "S1000000000", "float128", "[1. ... 2.]", "-inf", "dict(a=" * 200, "__import__('os').system('x')",
]  # fmt: skip
PICKLE_PARTS = [
    f"c{CANARY}\nfire\n)R".encode(), f"c{CANARY}\nfire\n(tR.".encode(), f"(i{CANARY}\nfire\n".encode(), f"(c{CANARY}\nfire\no".encode(),
    b"cos\nsystem\n(S'echo x'\ntR", b"c__builtin__\nbytearray\n(I10000000000\ntR", b"c__builtin__\neval\n(S'1'\ntR",
    b"\x96" + struct.pack("<Q", 10**10), b"\x8d" + struct.pack("<Q", 10**12), b"\x95" + struct.pack("<Q", 10**12), b"\x82\x01",
    b"2\x86" * 60,
    b"r" + struct.pack("<I", 2**32 - 1), b"j" + struct.pack("<I", 2**31), b"]" * 2000, b"((((" * 500, b"2" * 3000, b"b",
    b"}(2\x86" * 40 + b"u",
    b"\x8b" + struct.pack("<i", 2**31 - 1), b"I" + b"9" * 5000 + b"\n", b"P1\n", b"Q", b"0" * 50, b".", b"\x88\x81", b"\x85\x92",
]  # fmt: skip
YAML_PARTS = [
    f"!!python/object/apply:{CANARY}.fire [1]", f"!!python/name:{CANARY}.fire", f"!!python/module:{CANARY}",
    f"!!python/object:{CANARY}.X {{}}",
    f"!!python/object/new:{CANARY}.fire [1]", "&a [*a]", "[" * 2000, "{a: " * 500, "!!binary x", "!!timestamp 9999-99-99",
    "1:" * 3000 + "1",
    "!!set {? [1]}", "!!omap [1]", "<<: *x", "? [a]\n: b", "2001-02-30", "0x" + "f" * 9000, "*unknown", "- - -", "\t", "!!int a",
    "9" * 5000,
    f"{{class_path: {CANARY}.fire}}", f"{CANARY}.fire", f"{CANARY}:Env-v0", "&a a", "\x85", "!!float 1e999",
]  # fmt: skip


def damaged(content: bytes, form: str, draw: Draw) -> bytes:
    """Another content in place of a good one of this form."""
    change = _FORMS.get(form, flip) if draw.random() < 0.65 else draw.choice([flip, flip, cut, splice, overwrite])
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        try:
            content = change(content, draw)
        except Exception:  # what is damaged already may not be parsed again
            content = flip(content, draw)
    return content


def flip(content: bytes, draw: Draw) -> bytes:
    changed = bytearray(content or b"\x00")
    for _ in range(draw.choice([1, 2, 8, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: Draw) -> bytes:
    start, end = sorted((draw.randint(0, len(content)), draw.randint(0, len(content))))
    return content[:start] if draw.random() < 0.5 else content[:start] + content[end:]


def splice(content: bytes, draw: Draw) -> bytes:
    start, end = sorted((draw.randint(0, len(content)), draw.randint(0, len(content))))
    place = draw.randint(0, len(content))
    return content[:place] + content[start:end] * draw.choice([1, 1, 3]) + content[place:]


def overwrite(content: bytes, draw: Draw) -> bytes:
    place, value = draw.randint(0, len(content)), draw.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * draw.choice([1, 2, 4, 8, 100])
    return content[:place] + value + content[place + len(value) :]


def change_json(content: bytes, draw: Draw) -> bytes:
    data = json.loads(content)
    _change_tree(data, draw)
    return json.dumps(data).encode("utf-8", "surrogatepass")


def change_yaml(content: bytes, draw: Draw) -> bytes:
    if b"&b" in content:  # a bomb already, which must not go off here
        return flip(content, draw)
    if draw.random() < 0.7:
        lines = content.decode().split("\n")
        line = draw.randrange(len(lines))
        part = draw.choice(YAML_PARTS)
        key = re.match(r"(\s*(?:- )*[\w.]+:)", lines[line])
        lines[line] = f"{key[1]} {part}" if key else f"x{draw.randrange(9)}: {part}"
        return "\n".join(lines).encode()
    if draw.random() < 0.1:
        bomb = "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}, *b{i - 1}]\n" for i in range(1, draw.choice([4, 30])))
        return b"b0: &b0 [1, 1]\n" + bomb.encode() + content
    data = yaml.load(re.sub(rb"!!\S+", b"", content), Loader=yaml.SafeLoader)
    _change_tree(data, draw, 100)  # PyYAML takes long to write what is deeper
    return yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")


def _change_tree(data: Any, draw: Draw, deepest: int = 3000) -> None:
    """Change one node somewhere: its value, its type, or whether it is there."""
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            nodes.append((node, key))
            walk(node[key])

    walk(data)
    node, key = draw.choice(nodes)
    action = draw.random()
    if action < 0.1:
        del node[key]
    elif action < 0.2:
        other, other_key = draw.choice(nodes)
        node[key] = json.loads(json.dumps(other[other_key]))
    elif action < 0.25 and isinstance(node, dict):
        node[draw.choice(TEXTS)] = node.pop(key)
    elif action < 0.3:
        nested: Any = 1
        for _ in range(draw.choice([3, 30, deepest])):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        node[key] = nested
    else:
        value = draw.choice([NUMBERS, TEXTS, [None, True, [], {}, [1, "a"], [10**9], {"a": None}, [2**20] * 3, [[1, 2], [3]], [1] * 5000]])
        node[key] = draw.choice(value)


def change_pickle(content: bytes, draw: Draw) -> bytes:
    """Put something between two opcodes, or another opcode in an opcode's place."""
    places = []
    try:
        for _, _, place in pickletools.genops(io.BytesIO(content)):
            places.append(place or 0)
    except Exception:  # as far as it can be read
        pass
    place = draw.choice(places or [0])
    if draw.random() < 0.3:
        return content[:place] + draw.choice([op.code for op in pickletools.opcodes]).encode("latin1") + content[place + 1 :]
    if draw.random() < 0.2:
        end = draw.choice(places)
        return content[: max(place, end)] + content[min(place, end) : max(place, end)] + content[max(place, end) :]
    return content[:place] + draw.choice(PICKLE_PARTS) + content[place:]


def change_weights(content: bytes, draw: Draw) -> bytes:
    """A ``policy.pth`` whose pickle, records or zip is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl")) if draw.random() < 0.7 else draw.choice(list(members))
    if draw.random() < 0.3:  # numbers in the pickle are sizes, offsets and strides
        members[name] = re.sub(
            rb"K[\x01-\x09]", lambda found: draw.choice([found[0], b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"]), members[name]
        )
    else:
        members[name] = change_pickle(members[name], draw) if name.endswith(".pkl") else flip(members[name], draw)
    return zip_of(members)


def change_zip(content: bytes, draw: Draw) -> bytes:
    """Other sizes, methods, flags or names in a zip's headers; or a bomb in a member's place."""
    if draw.random() < 0.15:
        return _bomb(content, draw)
    changed = bytearray(content)
    places = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", content)]
    place = draw.choice(places)
    field = draw.choice([6, 8, 10, 12, 16, 20, 24, 28, 30, 42])
    value = draw.choice([b"\xff\xff\xff\xff", b"\x01\x00", b"\x0c\x00", b"\x0e\x00", b"\x00\x00\x00\x40", b"\x00\x00", b"\x08\x00"])
    changed[place + field : place + field + len(value)] = value
    return bytes(changed)


def _bomb(content: bytes, draw: Draw) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    target = draw.choice(list(members))
    method = draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, inside in members.items():
            archive.writestr(name, inside if name != target else draw.choice([b"[", b" ", b"\x00", b"]"]) * (30 << 20))
    bomb = bytearray(buffer.getvalue())
    if draw.random() < 0.5:  # it says that it is small
        place = bomb.rindex(b"PK\x01\x02")
        bomb[place + 24 : place + 28] = struct.pack("<I", 100)
    return bytes(bomb)


def change_npz(content: bytes, draw: Draw) -> bytes:
    """Arrays whose headers claim another shape or type."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    if draw.random() < 0.2:
        del members[name]
        return zip_of(members)
    shape = draw.choice(
        [b"(1000000000000,)", b"(-1,)", b"(0, 99999999999)", b"()", b"(3, 3)", b"(" * 500, b"('a',)", b"(True,)", b"(1," * 40]
    )
    if draw.random() < 0.6:
        members[name] = _npy_header(re.sub(rb"\([\d, ]*\)", shape, members[name], count=1), draw)
    else:
        kinds = [
            b"'|O'",
            b"'<c8'",
            b"'<U9'",
            b"'|V8'",
            b"'<M8[s]'",
            b"[('a', '<f8')]",
            b"'<f2'",
            b"'|b1'",
            f"__import__('{CANARY}')".encode(),
        ]
        members[name] = _npy_header(re.sub(rb"'[<|][^']*'", draw.choice(kinds), members[name], count=1), draw)
    return zip_of(members)


def _npy_header(content: bytes, draw: Draw) -> bytes:
    """The header's length, set right again after a change, most of the time."""
    end = content.find(b"\n")
    if content[:6] != b"\x93NUMPY" or end < 0 or draw.random() < 0.2:
        return content
    return content[:8] + struct.pack("<H", min(end + 1 - 10, 65535)) + content[10:]


def change_safetensors(content: bytes, draw: Draw) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    _change_tree(header, draw)
    text = json.dumps(header).encode()
    size = draw.choice([len(text), len(text), len(text), 2**63, 2**20, 10**9])
    return struct.pack("<Q", size) + text + content[8 + length :]


_FORMS: dict[str, Callable[[bytes, Draw], bytes]] = {
    "json": change_json, "yaml": change_yaml, "pickle": change_pickle, "weights": change_weights, "zip": change_zip, "npz": change_npz,
    "safetensors": change_safetensors,
}  # fmt: skip
