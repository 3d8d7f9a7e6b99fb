"""The ledger on Redis or Valkey, by Lua."""

from gateway.ledger.redis.ledger import RedisLedger, adopt

__all__ = ["RedisLedger", "adopt"]
