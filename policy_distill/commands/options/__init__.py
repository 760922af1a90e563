"""Reading the options of a command from the command line and from files."""
