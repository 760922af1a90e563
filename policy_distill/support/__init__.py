"""Files, processes, seeds and progress: what every part needs and nothing of the field."""
