"""How fast each stage is, beside what a user would write today and beside what the machine allows; one module a stage."""
