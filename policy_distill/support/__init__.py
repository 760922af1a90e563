"""General helpers without reinforcement learning: files, threads, seeds, progress and the terminal."""
