"""Measures what README.md and the pages claim, keeps it as JSON, and writes the tables from it."""
