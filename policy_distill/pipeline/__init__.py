"""One distillation job: its preparation, its stages and its result.json."""
