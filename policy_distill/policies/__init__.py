"""What a policy is: observations, action distributions and their divergences, students, and Q-values as logits."""
