"""Error messages for files and folders that are not agents: what they are, and how to get an agent."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from policy_distill.config import RequestError
from policy_distill.support.untrusted import open_regular, open_zip, refuse_damage

AGENT = ("data", "policy.pth")
"""Members of an agent's zip."""
_PREFIX = 1 << 16
"""Number of bytes of a PyTorch file's pickle that contain its first keys."""


def holds_agent(path: Path) -> bool:
    """Whether the file is a zip with an agent's members."""
    try:
        with refuse_damage(path, "it is passed over"), open_regular(path) as file, open_zip(file) as archive:
            return set(AGENT) <= set(archive.namelist())
    except RequestError:
        return False


def what_the_folder_is(folder: Path) -> str:
    """Message for ``folder``, in which no zip was found."""
    if all((folder / name).is_file() for name in AGENT):
        return f"{folder} is an agent's zip, unpacked; pack it again: (cd {folder} && zip -r ../{folder.name}.zip .)"
    if (folder / "saved_model.pb").is_file():
        return f"{folder} is a TensorFlow SavedModel, not an agent of Stable-Baselines3; name a .zip saved by agent.save()"
    inside = sorted(str(path.relative_to(folder)) for pattern in ("*/*.zip", "*/*/*.zip") for path in folder.glob(pattern))[:3]
    hint = f" (agents in it: {', '.join(inside)})" if inside else ""
    return f"{folder} is a folder without an agent's .zip{hint}; name the folder ALGO/ENV_RUN that holds ENV.zip"


def what_the_zip_is(path: Path, file: zipfile.ZipFile) -> str | None:
    """Message for a zip that is not an agent; None if its kind is unknown."""
    names = set(file.namelist())
    if {"parameters", "parameter_list"} <= names:
        return (
            f"{path} is an agent of Stable-Baselines 2 (TensorFlow), which is not supported; train it again with Stable-Baselines3, "
            "or wrap its predict in Teacher.from_callable"
        )
    if any(name.endswith("/data.pkl") for name in names):
        return f"{path} {_of_pytorch(file, names)}"
    zips = sorted(name for name in names if name.endswith(".zip"))
    if zips:
        return f"{path} is a zip that holds {', '.join(zips[:3])}; unpack it and name the agent's .zip"
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith("/policy.pth")})
    if folders:
        return (
            f"{path} holds the agent's members in the folder {folders[0]}/; pack them without it: "
            f"unzip {path.name} && (cd {folders[0]} && zip -r ../agent.zip .)"
        )
    if names and all(name.endswith((".csv", ".npz")) for name in names):
        return f"{path} holds logs of training, not an agent; name the agent's .zip"
    return None


def what_the_file_is(path: Path) -> str:
    """Message for a regular file that is not a zip.

    Raises:
        OSError: if it cannot be read.
    """
    with open_regular(path) as stream:
        start = stream.read(64)
    if not start:
        return f"{path} is empty; copy or download it again"
    if start[:2] == b"PK":
        return f"{path} is a damaged or truncated zip; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the file; fetch it: git lfs pull"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"{path} is a Python pickle, which is not read as an agent; name a .zip saved by agent.save()"
    return f"{path} is no zip; name a file saved by agent.save()"


def _of_pytorch(file: zipfile.ZipFile, names: Collection[str]) -> str:
    """Description of a file written by ``torch.save`` or ``torch.jit.save``, by the names in it."""
    if any("/code/" in name for name in names):
        return (
            "is a TorchScript module, which says neither spaces nor algorithm; save the agent with agent.save(), "
            "or wrap the module in Teacher.from_callable"
        )
    pickled = file.getinfo(min(name for name in names if name.endswith("/data.pkl")))
    start = b""
    if pickled.compress_type == zipfile.ZIP_STORED:  # as PyTorch writes it
        with file.open(pickled) as stream:
            start = stream.read(_PREFIX)
    if b"state_dict" in start:
        return (
            "was written by policy.save(), which keeps no algorithm; put the policy into an agent and save that: "
            'agent = PPO("MlpPolicy", env); agent.policy.load_state_dict(policy.state_dict()); agent.save(...)'
        )
    return (
        "holds PyTorch weights (a state dict), not an agent: spaces and algorithm are missing; load them into an agent's policy "
        "(agent.policy.load_state_dict(...)) and save that with agent.save()"
    )
