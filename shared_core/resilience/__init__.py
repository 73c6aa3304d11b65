"""Who is well and how long to wait: pure decisions and small machines. No I/O, no clock of their own."""
