"""Studies of many jobs: suites, ablations and benchmarks; and the training of teachers."""
