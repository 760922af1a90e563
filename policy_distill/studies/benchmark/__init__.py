"""Speed of each stage against common implementations and the machine's limits; one module per stage."""
