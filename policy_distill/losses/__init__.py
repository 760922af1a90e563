"""Distillation losses: relations, the objective of a student, and analytic gradients."""
