"""How tests speak HTTP to their own machine: past any proxy, and trusting nobody. To read whom the world trusts takes a client 60 ms."""

import ssl
from collections.abc import Mapping
from typing import Any, Final

LOOPBACK: Final[Mapping[str, Any]] = {"trust_env": False, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
"""For httpx: `httpx.get(url, **LOOPBACK)`."""
