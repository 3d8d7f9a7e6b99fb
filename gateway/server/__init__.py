"""The HTTP surface: bytes in, exchanges out."""
