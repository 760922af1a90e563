"""Export of students to files that do not need this package."""
