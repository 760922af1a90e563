"""The files of a trained agent, read as plain data."""
