"""What `make demo` shows: six outages that an application survives, on this machine, without a key."""
