"""The Cycles protocol, served over this gateway's own ledger. Nothing here keeps a book: what comes in is read, asked of the ledger, and
its answer told in the protocol's words. `docs/cycles.md` says what is served and where it differs."""
