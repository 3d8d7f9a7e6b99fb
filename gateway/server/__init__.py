"""The HTTP surface: aiohttp requests in, exchanges out."""
