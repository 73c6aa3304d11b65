"""Makes the environments that `make` runs in. Standard library only: it is run by whatever Python is there first."""
