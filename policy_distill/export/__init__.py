"""A student as a file that needs none of this."""
