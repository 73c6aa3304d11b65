"""The cache: what is the same, what may be served and kept, and what identical requests share."""
