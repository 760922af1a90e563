"""What holds for every test: one torch thread, reproducible examples, and the small environments known to Gymnasium."""

from __future__ import annotations

import hypothesis
import torch

import tests.small_worlds  # noqa: F401  (registers them)

torch.set_num_threads(1)
hypothesis.settings.register_profile("stable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("stable")
