"""Files that travel with a job to a machine that does not share this machine's disk, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from policy_distill.config import DistillConfig, RequestError
from policy_distill.teachers import find_agent


@dataclass(frozen=True)
class Parcel:
    """Files by their path relative to a folder.

    Attributes:
        contents: path -> contents, in the order in which they are written.
        links: path of a symbolic link -> relative path of its target, which is in ``contents``.
    """

    contents: dict[str, bytes]
    links: dict[str, str]

    @classmethod
    def of(cls, paths: Iterable[Path], root: Path | str = "/") -> Parcel:
        """The files at ``paths`` below ``root``; the file that a symbolic link points to comes along."""
        contents, links = {}, {}
        for path in paths:
            name = relative(path, root)
            if path.is_symlink():
                links[name] = name = relative(path.resolve(), root)
            contents[name] = path.read_bytes()
        return cls(contents, links)

    def unpack(self, root: Path | str) -> None:
        """Write the files to their paths below ``root``."""
        for name, content in self.contents.items():
            _place(root, name).write_bytes(content)
        for name, target in self.links.items():
            _place(root, name).symlink_to(Path(root, target))


def relative(path: Path | str, root: Path | str = "/") -> str:
    return os.path.relpath(path, root)


def _place(root: Path | str, name: str) -> Path:
    target = Path(root, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def with_paths(config: DistillConfig, path_of: Callable[[str], str]) -> DistillConfig:
    """The settings with ``path_of`` applied to every path in them. Agents that ship with the project become paths."""

    def agent(name: str) -> str:
        try:
            path = Path(name).expanduser()
            return path_of(str(path if path.exists() else find_agent(name, normalization=config.normalization).zip_path))
        except RequestError:  # the job says what is wrong
            return name

    def file(name: str | None) -> str | None:
        return name if name in (None, "", "none") else path_of(os.path.expanduser(name))

    extractor = config.extractor
    if extractor is not None:
        source, _, name = extractor.rpartition(":")
        extractor = f"{file(source)}:{name}"
    return dataclasses.replace(
        config,
        teacher=agent(config.teacher),
        ensemble=dataclasses.replace(config.ensemble, teachers=tuple(map(agent, config.ensemble.teachers))),
        normalization=file(config.normalization),
        extractor=extractor,
        output=file(config.output),
        collect=dataclasses.replace(config.collect, extra_states=file(config.collect.extra_states)),
    )
