"""One job: its preparation, its stages, and what becomes result.json."""
