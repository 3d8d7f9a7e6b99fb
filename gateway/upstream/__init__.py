"""The provider's side of a call: the port, the clients behind it, and when a call may be sent again."""

from gateway.upstream.lean import LeanUpstream
from gateway.upstream.port import Answer, Endpoint, NotSent, TooLarge, Unknown, Upstream, UpstreamRequest
from gateway.upstream.retrying import NOT_SENT, Failure, RetryPolicy
from gateway.upstream.with_aiohttp import AiohttpUpstream

__all__ = [
    "NOT_SENT",
    "AiohttpUpstream",
    "Answer",
    "Endpoint",
    "Failure",
    "LeanUpstream",
    "NotSent",
    "RetryPolicy",
    "TooLarge",
    "Unknown",
    "Upstream",
    "UpstreamRequest",
]
