"""Trials of the ledger: many processes at one budget, kills, power loss, full disks, and the bill it must match."""
