"""What a policy is: observations, action distributions, students, and Q-values as logits."""
