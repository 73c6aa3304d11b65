"""Programs of this repository: set-up, demo, evidence, mutants. Not shipped in the wheel."""
