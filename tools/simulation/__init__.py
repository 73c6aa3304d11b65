"""Strategies and peers' policies through the same troubles in simulated time: runs, charts, a search for trouble."""
