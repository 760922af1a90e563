"""Training by reward: proximal policy optimisation on a student."""
