"""Training a teacher with Stable-Baselines3 and publishing it."""
