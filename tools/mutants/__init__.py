"""Changes the decisions of the core in small ways and sees the tests notice (`make mutants`)."""
