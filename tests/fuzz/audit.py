"""Reads hostile files of every kind while Python reports what is done: ``python -m tests.fuzz.audit FOLDER``."""

from __future__ import annotations

import base64
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments import specs as environments
from policy_distill.evaluation.measure import load_policy
from policy_distill.evaluation.verify import verify
from tests.fuzz.corpus import CANARY, KINDS, Kind, folder_of, replace_member, zip_of

CALL = f"c{CANARY}\nfire\n(S'x'\ntR".encode()
SHELL = b"cos\nsystem\n(S'echo ran'\ntR"
ENV = f"{CANARY}:Env-v0"
TEXTS = {
    "agent's args.yml": [f"env: {ENV}\n", f"algo: ppo\nenv: {ENV}\nenv_kwargs: {{render_mode: human}}\n"],
    "agent's config.yml": [f"env_wrapper: {CANARY}.Wrapper\n", f"normalize: !!python/object/apply:{CANARY}.fire [1]\n"],
    "config.yaml": [
        f"env: {ENV}\n", "trust: true\n", f"loss: {CANARY}.fire\n", f"loss: {{class_path: {CANARY}.fire}}\n",
        f"train: {{vary: [{CANARY}.fire]}}\n", f"seed: !!python/object/apply:{CANARY}.fire [1]\n",
    ],
    "environment": [f"id: {ENV}\n", f"id: !!python/name:{CANARY}.fire\n"],
    "study": [f"title: t\nintroduction: i\nbase: {{env: {ENV}}}\nagents: {{a: {{}}}}\ngroups: {{}}\nseeds: [0]\n"],
}  # fmt: skip
"""Kind of file -> contents that want something run."""


def in_pickle(content: bytes) -> bytes:
    """The pickle, which calls a module's function and the shell before it ends."""
    return content[:-1] + CALL + b"0" + SHELL + b"0" + content[-1:]


def in_json(content: bytes) -> bytes:
    """JSON whose pickles call, and whose ids name a module."""

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            changes = {":serialized:": base64.b64encode(CALL + b".").decode(), "id": ENV}
            return {key: changes.get(key, spoilt(item)) for key, item in value.items()}
        return [spoilt(item) for item in value] if isinstance(value, list) else value

    return json.dumps({**spoilt(json.loads(content)), "class_path": f"{CANARY}.fire"}).encode()


def in_weights(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    return zip_of({**members, name: in_pickle(members[name])})


def in_npz(content: bytes) -> bytes:
    """Arrays of objects, which numpy would unpickle."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zip_of({name: header.getvalue() + CALL + b"." for name in archive.namelist()})


SPOILERS = {"pickle": in_pickle, "json": in_json, "weights": in_weights, "npz": in_npz}


def use(kind: Kind, root: Path) -> None:
    """Read a file, and make the environment that it names."""
    folder = folder_of(kind, root)
    kind.read(folder)
    if kind.name == "student.json":
        _, spec = load_policy(str(folder))
        assert spec is not None
        environments.make(spec).close()
    if kind.name == "environment":
        environments.make(environments.resolve(str(folder / "env.yaml"))).close()
    if kind.name == "certificate.json":
        verify(folder / "certificate.json", policy=str(folder / "student"), teacher=str(folder / "ppo.zip"), workers=0)


class Watch:
    """An audit hook that notes what no reader may do."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        changes = event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.")) and event not in (
            "os.scandir",
            "os.listdir",
            "os.chdir",
        )
        if writes or changes or event == "import" or (event == "compile" and not _harmless(*arguments)):
            self.seen.append(f"{event} {str(arguments)[:150]}")


def _harmless(source: Any, filename: Any) -> bool:
    """``ast.parse`` makes a tree of a literal, which nobody runs; ``typing`` evaluates our own annotations."""
    return filename == "<unknown>" or (filename == "<string>" and CANARY.encode() not in source and b"(" not in source)


def main(folder: str) -> None:
    root, watch = Path(folder), Watch()
    sys.path.insert(0, folder)
    sys.addaudithook(watch)
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        if kind.name in ("result.json", "suite.json"):  # their readers write reports
            continue
        path = root / kind.path
        good = content = path.read_bytes()
        if kind.member:
            with zipfile.ZipFile(path) as archive:
                content = archive.read(kind.member)
        spoil = SPOILERS.get(kind.form)
        for spoilt in [*(text.encode() for text in TEXTS.get(kind.name, ())), *([spoil(content)] if spoil else [])]:
            if kind.member:
                replace_member(path, kind.member, spoilt)
            else:
                path.write_bytes(spoilt)
            for watch.on in (False, True):  # what refusing needs is imported the first time
                try:
                    use(kind, root)
                    outcome = "read"
                except RequestError as error:
                    outcome = str(error)
            watch.on = False
            found.setdefault(kind.name, []).append(outcome)
        path.write_bytes(good)
    executed = (root / "executed").exists() or CANARY in sys.modules
    print(json.dumps({"seen": watch.seen, "outcomes": found, "executed": executed}))


if __name__ == "__main__":
    main(sys.argv[1])
