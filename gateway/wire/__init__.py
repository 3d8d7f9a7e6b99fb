"""Pure: what goes over HTTP. One dialect a file, and what they share: exchanges, headers, problems, SSE."""
