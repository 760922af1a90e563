"""Kinds of agents that Stable-Baselines3 and sb3-contrib can make: spaces, algorithms and their options. None is trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.torch_layers import CombinedExtractor

from policy_distill.support import trees
from tests.teachers import extractors
from tests.teachers.conftest import TinyEnv

f32, boolean = np.float32, cast(Any, np.bool_)
VECTOR = Box(-5, 5, (4,), f32)
LOPSIDED = Box(np.array([-1, 0, -3], f32), np.array([1, 10, -1], f32))
GOALS = Dict({"achieved_goal": Box(-5, 5, (3,), f32), "desired_goal": Box(-5, 5, (3,), f32), "observation": VECTOR})
# Of an OrderedDict, gymnasium keeps the order of the keys; a plain dict's it sorts.
PARTS = Dict(OrderedDict(
    vector=VECTOR, grid=Box(0, 2, (3, 3, 1), np.int8), choice=Discrete(3), switches=MultiBinary(2), dials=MultiDiscrete([2, 3]),
    exact=Box(np.array([-1, 0.5]), np.array([1, 2.5]), dtype=np.float64),
))  # fmt: skip
OFF_POLICY = ("DQN", "QRDQN", "SAC", "TQC", "TD3", "DDPG", "CrossQ")


@dataclass(frozen=True)
class Kind:
    """One agent, and how it can be read.

    Attributes:
        extractor: name of its class in ``extractors``, if it reads its observations through one of its own.
        needs_trust: what the refusal of the zip says that cannot be rebuilt from plain data.
        refused: what the refusal says however the agent is read.
    """

    name: str
    algo: str
    observation_space: gym.Space
    action_space: gym.Space
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "MlpPolicy"
    extractor: str | None = None
    needs_trust: str | None = None
    refused: str | None = None

    def model(self) -> Any:
        """The agent, with weights whose actions spread over the whole space and past its bounds."""
        import sb3_contrib
        import stable_baselines3

        arguments = dict(self.arguments)
        policy_kwargs = dict(arguments.pop("policy_kwargs", {}))
        if self.extractor is not None:
            policy_kwargs["features_extractor_class"] = getattr(extractors, self.extractor)
        if self.algo in OFF_POLICY:
            arguments["buffer_size"] = 2
        if self.algo not in ("ARS", "RecurrentPPO"):
            policy_kwargs.setdefault("net_arch", [9, 8])
        library = stable_baselines3 if hasattr(stable_baselines3, self.algo) else sb3_contrib
        finite = _finite(self.action_space)  # today's versions refuse infinite bounds; agents of older ones have them
        model = getattr(library, self.algo)(
            self.policy, TinyEnv(self.observation_space, finite), device="cpu", seed=0, policy_kwargs=policy_kwargs, **arguments
        )
        if finite is not self.action_space:
            model.action_space = model.policy.action_space = self.action_space
        observations = None if self.refused else self.observations(16)
        for seed in range(20):
            _spread(model, seed)
            if observations is None or len(np.unique(model.predict(observations, deterministic=True)[0], axis=0)) > 1:
                break
        return model

    def observations(self, count: int) -> trees.Tree:
        """Raw ones, ``[count, ...]``."""
        self.observation_space.seed(0)
        return trees.stack([self.observation_space.sample() for _ in range(count)])


def _finite(space: gym.Space) -> gym.Space:
    if not isinstance(space, Box) or np.isfinite([space.low, space.high]).all():
        return space
    return Box(np.nan_to_num(space.low, neginf=-1), np.nan_to_num(space.high, posinf=1), dtype=space.dtype.type)


def _spread(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.policy.named_parameters(), *model.policy.named_buffers()]:
            if name.endswith(("running_var", "ra_var")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                scale = 0.7 if "log_std" in name and tensor.ndim < 2 else 0.3 if tensor.ndim < 2 else 1.6 / tensor.shape[-1] ** 0.5
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))


def _observations() -> Iterator[Kind]:
    """What the agent sees."""
    three = Discrete(3)
    spaces: dict[str, gym.Space] = {
        "vector": VECTOR,
        "one number": Box(-1, 1, (1,), f32),
        "unbounded": Box(-np.inf, np.inf, (4,), f32),
        "bounds that differ": Box(np.array([-1, 0, 100], f32), np.array([1, 1e-4, 150], f32)),
        "float64": Box(-5, 5, (4,), np.float64),
        "float16": Box(-5, 5, (4,), np.float16),
        "int64": Box(-100, 100, (4,), np.int64),
        "int32": Box(0, 50, (4,), np.int32),
        "int8 board": Box(-1, 1, (3, 3), np.int8),
        "uint8 bytes": Box(0, 255, (16,), np.uint8),
        "uint8 0..255 of two dimensions": Box(0, 255, (5, 6), np.uint8),
        "uint8 0..1 of three dimensions": Box(0, 1, (4, 4, 3), np.uint8),
        "bool": Box(0, 1, (6,), boolean),
        "two dimensions": Box(-5, 5, (3, 2), f32),
        "three dimensions": Box(-1, 1, (3, 4, 4), f32),
        "1500 numbers": Box(-1, 1, (1500,), f32),
        "discrete": Discrete(6),
        "multi-discrete": MultiDiscrete([3, 4]),
        "multi-binary": MultiBinary(5),
        "multi-binary of two dimensions": MultiBinary([2, 3]),
    }
    for name, space in spaces.items():
        yield Kind(f"observations {name}", "PPO", space, three)
    yield Kind("dqn observations discrete", "DQN", Discrete(6), three)
    yield Kind("sac observations multi-discrete", "SAC", MultiDiscrete([3, 4]), LOPSIDED)
    yield Kind("observations from 1", "PPO", Discrete(6, start=1), three, refused="observations begin at 1")
    yield Kind("observations from -2", "DQN", Discrete(6, start=-2), three, refused="observations begin at -2")
    yield Kind("observations multi-discrete from -1", "PPO", MultiDiscrete([3, 4], start=[-1, 0]), three, refused=r"begin at \[-1, 0\]")
    yield Kind("dqn observations from 1 own extractor", "DQN", Discrete(6, start=1), three, extractor="Layers", refused="begin at 1")


def _actions() -> Iterator[Kind]:
    """How the agent acts."""
    two = np.array([-1, -1], f32)
    spaces: dict[str, gym.Space] = {
        "discrete": Discrete(4),
        "one choice": Discrete(1),
        "multi-discrete": MultiDiscrete([3, 2, 5]),
        "multi-binary": MultiBinary(4),
        "bounds that differ": LOPSIDED,
        "of two dimensions": Box(-2, 3, (2, 2), f32),
        "float64": Box(-2, 3, (2,), np.float64),
        "int64": Box(0, 10, (2,), np.int64),
        "tiny": Box(-1e-3, 1e-3, (2,), f32),
        "wide": Box(-1e6, 1e6, (2,), f32),
        "as wide as float32": Box(-np.finfo(f32).max, np.finfo(f32).max, (2,), f32),
        "half bounded": Box(two, np.array([np.inf, 1], f32)),
        "unbounded": Box(-np.inf, np.inf, (2,), f32),
        "bounds that meet": Box(two, np.array([1, -1], f32)),
    }
    for name, space in spaces.items():
        yield Kind(f"actions {name}", "PPO", VECTOR, space)
    for name in ("bounds that meet", "of two dimensions", "float64", "wide"):
        yield Kind(f"sac actions {name}", "SAC", VECTOR, spaces[name])
        yield Kind(f"td3 actions {name}", "TD3", VECTOR, spaces[name])
    for name in ("unbounded", "as wide as float32"):
        yield Kind(f"sac actions {name}", "SAC", VECTOR, spaces[name], refused="none or too wide ones")
    for algo in ("PPO", "DQN"):
        for start in (-1, 1):
            plain = Kind(
                f"{algo.lower()} actions from {start}", algo, VECTOR, Discrete(3, start=start), refused=f"actions begin at {start}"
            )
            yield plain
            yield replace(plain, name=f"{plain.name} own extractor", extractor="Layers")
    yield Kind("actions multi-discrete from 1", "PPO", VECTOR, MultiDiscrete([3, 2], start=[1, 0]), refused=r"begin at \[1, 0\]")


def _algorithms() -> Iterator[Kind]:
    """Every algorithm, with and without an extractor of its own."""
    continuous: dict[str, dict[str, Any]] = {"A2C": {}, "TRPO": {}, "SAC": {}, "TQC": {}, "TD3": {}, "DDPG": {}}
    discrete: dict[str, dict[str, Any]] = {
        "A2C": {},
        "TRPO": {},
        "DQN": {},
        "QRDQN": {"policy_kwargs": {"n_quantiles": 7}},
        "MaskablePPO": {},
    }
    for space, algorithms in ((LOPSIDED, continuous), (Discrete(3), discrete)):
        for algo, arguments in algorithms.items():
            name = f"{algo.lower()} {'continuous' if space is LOPSIDED else 'discrete'}"
            plain = Kind(name, algo, VECTOR, space, arguments)
            policy_kwargs = arguments.get("policy_kwargs", {})
            yield plain
            yield replace(plain, name=f"{name} own extractor", extractor="Layers")
            yield replace(plain, name=f"{name} without hidden layers", arguments={"policy_kwargs": {**policy_kwargs, "net_arch": []}})
    yield Kind("maskable multi-discrete", "MaskablePPO", VECTOR, MultiDiscrete([3, 2]))
    yield Kind("maskable multi-discrete own extractor", "MaskablePPO", VECTOR, MultiDiscrete([3, 2]), extractor="Layers")
    yield Kind("maskable multi-binary", "MaskablePPO", VECTOR, MultiBinary(3))
    yield Kind("maskable multi-binary own extractor", "MaskablePPO", VECTOR, MultiBinary(3), extractor="Layers")
    for policy in ("LinearPolicy", "MlpPolicy"):
        linear = policy == "LinearPolicy"
        ars = Kind(f"ars {'linear' if linear else 'mlp'}", "ARS", VECTOR, LOPSIDED, policy=policy)
        yield ars
        yield replace(ars, name=f"{ars.name} discrete", action_space=Discrete(3))
        yield replace(ars, name=f"{ars.name} other bias", arguments={"policy_kwargs": {"with_bias": linear}})
        yield replace(ars, name=f"{ars.name} squashed otherwise", arguments={"policy_kwargs": {"squash_output": linear}})
    yield Kind("ars mlp without hidden layers", "ARS", VECTOR, LOPSIDED, {"policy_kwargs": {"net_arch": []}})
    crossq: dict[str, dict[str, Any]] = {
        "": {}, " without hidden layers": {"net_arch": []}, " other epsilon": {"batch_norm_eps": 0.1},
        " without normalisation": {"batch_norm": False},
    }  # fmt: skip
    for name, policy_kwargs in crossq.items():
        yield Kind(f"crossq{name}", "CrossQ", VECTOR, LOPSIDED, {"policy_kwargs": policy_kwargs})
    yield Kind("crossq gsde", "CrossQ", VECTOR, LOPSIDED, {"use_sde": True}, needs_trust="normalises what gSDE reads")
    yield Kind("crossq own extractor", "CrossQ", VECTOR, LOPSIDED, extractor="Layers")


def _options() -> Iterator[Kind]:
    """Settings of the policy."""
    nn = torch.nn
    for activation in (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.ELU, nn.SiLU, nn.Softplus):
        yield Kind(f"activation {activation.__name__}", "PPO", VECTOR, LOPSIDED, {"policy_kwargs": {"activation_fn": activation}})
    trained = {"policy_kwargs": {"activation_fn": nn.PReLU}}
    yield Kind("activation with weights", "PPO", VECTOR, LOPSIDED, trained, needs_trust="activation")
    on_policy = {
        "pi and vf": {"net_arch": {"pi": [8], "vf": [12, 12]}, "ortho_init": False},
        "deep": {"net_arch": [8, 8, 8, 8]},
        "nothing hidden": {"net_arch": []},
        "separate extractors": {"share_features_extractor": False},
        "another optimiser": {"optimizer_class": torch.optim.RMSprop, "log_std_init": -2.0},
    }
    for name, settings in on_policy.items():
        yield Kind(f"ppo {name}", "PPO", VECTOR, LOPSIDED, {"policy_kwargs": settings})
    gsde = {
        "": {}, " squashed": {"squash_output": True}, " squashed not full": {"squash_output": True, "full_std": False},
        " expln": {"use_expln": True}, " not full": {"full_std": False},
    }  # fmt: skip
    for name, settings in gsde.items():
        yield Kind(f"ppo gsde{name}", "PPO", VECTOR, LOPSIDED, {"use_sde": True, "policy_kwargs": settings})
    squashed = {"use_sde": True, "policy_kwargs": {"squash_output": True}}
    yield Kind("ppo gsde squashed own extractor", "PPO", VECTOR, LOPSIDED, squashed, extractor="Layers")
    for clip in (0.0, 0.5, 2.0):
        yield Kind(f"sac gsde clip_mean {clip}", "SAC", VECTOR, LOPSIDED, {"use_sde": True, "policy_kwargs": {"clip_mean": clip}})
    yield Kind("sac gsde expln", "SAC", VECTOR, LOPSIDED, {"use_sde": True, "policy_kwargs": {"use_expln": True}})
    yield Kind("tqc gsde", "TQC", VECTOR, LOPSIDED, {"use_sde": True, "top_quantiles_to_drop_per_net": 1})
    critics = {"n_critics": 1, "net_arch": {"pi": [8], "qf": [12, 12]}}
    for algo in ("SAC", "TQC", "TD3"):
        yield Kind(f"{algo.lower()} one critic", algo, VECTOR, LOPSIDED, {"policy_kwargs": critics})
        shared = {"policy_kwargs": {"share_features_extractor": True}}
        yield Kind(f"{algo.lower()} shared extractor", algo, VECTOR, LOPSIDED, shared, extractor="Layers")
    yield Kind("tqc quantiles", "TQC", VECTOR, LOPSIDED, {"policy_kwargs": {"n_quantiles": 5, "n_critics": 3}})
    yield Kind("qrdqn one quantile", "QRDQN", VECTOR, Discrete(3), {"policy_kwargs": {"n_quantiles": 1}})


def _extractors() -> Iterator[Kind]:
    """Classes that read the observations in their own way."""
    wide = {"policy_kwargs": {"features_extractor_kwargs": {"width": 11}}}
    separate = {"policy_kwargs": {"share_features_extractor": False}}
    yield Kind("extractor with an argument", "PPO", VECTOR, LOPSIDED, wide, extractor="Layers")
    yield Kind("extractors apart", "PPO", VECTOR, LOPSIDED, separate, extractor="Layers")
    yield Kind("extractor without weights", "PPO", VECTOR, LOPSIDED, extractor="Tenth")
    yield Kind("extractor without weights dqn", "DQN", VECTOR, Discrete(3), extractor="Tenth")
    yield Kind("extractor of rows", "PPO", Box(-5, 5, (3, 2), f32), LOPSIDED, extractor="Rows")
    yield Kind("extractor of a board", "DQN", Box(0, 1, (4, 4, 3), np.uint8), Discrete(4), extractor="Layers")
    yield Kind("extractor with batch normalisation", "PPO", VECTOR, Discrete(4), extractor="BatchNormed")
    yield Kind("extractor that is a plain module", "PPO", VECTOR, LOPSIDED, extractor="Plain")
    for name, space in {"discrete": Discrete(6), "multi-discrete": MultiDiscrete([3, 4]), "multi-binary": MultiBinary([2, 3])}.items():
        yield Kind(f"extractor of {name} observations", "PPO", space, LOPSIDED, extractor="Layers")


def _dictionaries() -> Iterator[Kind]:
    """Dict observations, read by a MultiInputPolicy."""
    policy = "MultiInputPolicy"
    for space, acted, algorithms in (
        (GOALS, LOPSIDED, ("A2C", "PPO", "TRPO", "SAC", "TQC", "TD3", "DDPG")),
        (PARTS, Discrete(4), ("A2C", "PPO", "DQN", "QRDQN", "MaskablePPO")),
    ):
        for algo in algorithms:
            yield Kind(f"dict {algo.lower()} {'goals' if space is GOALS else 'parts'}", algo, space, acted, policy=policy)
    named = {"policy_kwargs": {"features_extractor_class": CombinedExtractor}}
    yield Kind("dict extractor named", "PPO", PARTS, LOPSIDED, named, policy)
    yield Kind("dict extractor by key", "PPO", PARTS, LOPSIDED, policy=policy, extractor="ByKey")
    yield Kind("dict extractor by key sac", "SAC", GOALS, LOPSIDED, policy=policy, extractor="ByKey")
    yield Kind("dict gsde", "SAC", GOALS, LOPSIDED, {"use_sde": True}, policy)
    yield Kind("dict hindsight", "SAC", GOALS, LOPSIDED, {"replay_buffer_class": HerReplayBuffer}, policy)
    yield Kind("dict of one", "PPO", Dict({"only": VECTOR}), Discrete(3), policy=policy)
    late = Dict({"a": Discrete(3, start=1), "b": VECTOR})
    yield Kind("dict from 1", "PPO", late, Discrete(3), policy=policy, refused="observations begin at 1")


def _images() -> Iterator[Kind]:
    """Images as Stable-Baselines3 keeps them, channel after channel, read by convolutions or flattened."""
    image, small, three = Box(0, 255, (2, 36, 40), np.uint8), Box(0, 255, (3, 5, 6), np.uint8), Discrete(3)
    cnn = "CnnPolicy"
    for algo in ("A2C", "PPO", "TRPO", "SAC", "TQC", "TD3", "DDPG"):
        yield Kind(f"images {algo.lower()} continuous", algo, image, LOPSIDED, policy=cnn)
    for algo in ("A2C", "PPO", "DQN", "QRDQN", "MaskablePPO"):
        yield Kind(f"images {algo.lower()} discrete", algo, image, three, policy=cnn)
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "as they are": ("PPO", {"normalize_images": False}),
        "features": ("PPO", {"features_extractor_kwargs": {"features_dim": 11}}),
        "extractors apart": ("PPO", {"share_features_extractor": False}),
        "nothing hidden": ("PPO", {"net_arch": []}),
        "one extractor": ("SAC", {"share_features_extractor": True}),
    }
    for name, (algo, arguments) in settings.items():
        yield Kind(f"images {name}", algo, image, LOPSIDED, {"policy_kwargs": arguments}, cnn)
    scaled = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    yield Kind("images scaled before", "PPO", Box(0, 1, (2, 36, 40), f32), three, {"policy_kwargs": scaled}, cnn)
    yield Kind("images gsde", "SAC", image, LOPSIDED, {"use_sde": True}, cnn)
    for name, arguments in {"": {}, " as they are": {"normalize_images": False}}.items():
        yield Kind(f"images flattened{name}", "PPO", small, three, {"policy_kwargs": arguments})
        yield Kind(f"images flattened{name} dqn", "DQN", small, three, {"policy_kwargs": arguments})
        yield Kind(f"images own extractor{name}", "PPO", small, three, {"policy_kwargs": arguments}, cnn, extractor="Layers")
    # Of two images, and a part between them that is none.
    parts = Dict(OrderedDict(wide=image, choice=Discrete(3), camera=Box(0, 255, (1, 40, 36), np.uint8), grid=Box(0, 2, (3, 4, 4), np.int8)))
    many = "MultiInputPolicy"
    for algo in ("A2C", "DQN", "QRDQN"):
        yield Kind(f"dict images {algo.lower()}", algo, parts, three, policy=many)
    for algo in ("PPO", "SAC", "TD3"):
        yield Kind(f"dict images {algo.lower()}", algo, parts, LOPSIDED, policy=many)
    narrow = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 7}}}
    yield Kind("dict images narrow", "PPO", parts, three, narrow, many)
    floats = Dict({"bytes": image, "floats": Box(0, 1, (1, 36, 36), f32), "vector": VECTOR})  # as they are, both count as images
    yield Kind("dict images as they are", "PPO", floats, three, {"policy_kwargs": {"normalize_images": False}}, many)
    tiny = Dict({"camera": small, "vector": VECTOR})
    yield Kind("dict images own extractor", "PPO", tiny, three, policy=many, extractor="ByKey")


KINDS = [*_observations(), *_actions(), *_algorithms(), *_options(), *_extractors(), *_dictionaries(), *_images()]
