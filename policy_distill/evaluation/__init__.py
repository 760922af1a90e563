"""Measuring policies: returns, certificates, comparisons, and the check of a teacher before the work."""
