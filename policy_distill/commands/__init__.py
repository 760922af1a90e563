"""The commands, one module each: parse the options, run the job, print the result."""
