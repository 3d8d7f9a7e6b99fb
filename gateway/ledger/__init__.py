"""The ledger: one contract (`contract`), its implementations, and what they share."""
