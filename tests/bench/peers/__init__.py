"""The peers: how each is configured at its documented best, and how they are installed."""
