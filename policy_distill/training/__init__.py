"""Training students: the dataset, batches, the stack of students, the trainer, and PPO for polishing."""
