"""Distillation losses: divergences, relations, the objective of a student, and analytic gradients."""
