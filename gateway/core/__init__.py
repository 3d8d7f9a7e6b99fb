"""Pure: no I/O, clock, randomness or logging. What a call is, what it may cost, and which plans may serve it."""
