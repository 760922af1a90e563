"""The commands, one module each: read the options, call what does the work, print the result."""
