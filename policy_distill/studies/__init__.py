"""Many jobs: suites, ablations, benchmarks, and the training of teachers."""
