"""The ledger on one SQLite file."""

from gateway.ledger.sqlite.ledger import SqliteLedger, adopt

__all__ = ["SqliteLedger", "adopt"]
