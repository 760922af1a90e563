"""Environments as data, their wrappers, and what steps many of them."""
