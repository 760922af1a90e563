"""Stepping environments: whole episodes and streams of transitions, here and in worker processes."""
