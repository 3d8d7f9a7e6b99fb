"""Penstock inside other servers: their hooks, translated onto the same decision and the same ledger."""
