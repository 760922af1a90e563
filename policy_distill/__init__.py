"""Turn a large, trained Stable-Baselines3 agent into a small student policy and prove that it kept its return."""
