"""Many jobs: one list, run here or on a Ray cluster; one rule for what is done already."""
