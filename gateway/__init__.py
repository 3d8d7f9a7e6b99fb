"""Penstock: an OpenAI-compatible reverse proxy that gives every AI agent run a hard spending ceiling."""

__version__ = "0.1.0"
