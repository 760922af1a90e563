"""Parsing of a command's options from the command line and from config files."""
