"""Other people's formats: bytes in, values out, and back. Pure: no I/O, clock, randomness or logging."""
