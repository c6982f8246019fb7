"""The scheduler's pure core: facts in, commands out; no clock, no I/O, no threads, no randomness."""
