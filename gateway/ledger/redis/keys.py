"""What the keys of a Redis ledger are called. All keys of one tenant have one hash tag, so they live in one slot of a cluster.

`penstock:{TENANT}:…`, where the tenant's name is percent-encoded: no brace in it can end the tag. What follows needs no encoding; account
keys have their values percent-encoded anyway. `penstock:tenants` names the tenants that there are, in a slot of its own.
"""

from typing import Final
from urllib.parse import quote

TENANTS: Final = "penstock:tenants"


def as_text(value: str) -> str:
    """A value of a scope as account keys have it."""
    return quote(value, safe="", errors="surrogatepass")


class TenantKeys:
    """The keys of one tenant."""

    __slots__ = (
        *(
            "acts",
            "acts_order",
            "days",
            "documents",
            "documents_latest",
            "documents_number",
            "ended",
            "ends",
            "expired",
            "freezes",
        ),
        *(
            "frozen",
            "lapsing",
            "leases",
            "meta",
            "named",
            "memos",
            "prefix",
            "refused",
            "refused_at",
            "runs",
            "shared",
            "tombstones",
        ),
    )

    def __init__(self, tenant: str) -> None:
        # An empty tag would be none at all.
        prefix = f"penstock:{{{quote(tenant, safe='', errors='surrogatepass') or '%'}}}:"
        self.prefix = prefix
        self.meta = (
            prefix + "meta"
        )  # packed: epoch, sequence, how many raises there were, scopes frozen, acts, the format's version
        self.leases = prefix + "leases"  # sorted set: tail → when the lease of a live hold ends
        self.lapsing = prefix + "lapsing"  # … → when it was reserved, of every call that lapses
        self.expired = prefix + "expired"  # … → when a hold was reserved that expired and was never confirmed
        self.ended = prefix + "ended"  # … → when an ended call (tombstones left out) ended
        self.tombstones = prefix + "tombstones"  # … → since when
        self.runs = prefix + "runs"  # sorted set: run → second of its last use
        self.ends = prefix + "ends"  # sorted set: account key → end of its window; without those that `named` alone leads to
        self.named = prefix + "named"  # sorted set by name: "RUN KEY" of the accounts whose scope names a run
        self.shared = prefix + "shared"  # sorted set: a scope that calls without a run id share → end of its day
        self.frozen = prefix + "frozen"  # sorted set by name: the texts of frozen scopes
        self.freezes = prefix + "freezes"  # hash: text → when, and who and why
        self.refused = prefix + "refused"  # hash: tail → the record of a refusal
        self.refused_at = prefix + "refused_at"  # sorted set: tail → when
        self.days = prefix + "days"  # set: days that have spend
        self.acts = prefix + "acts"  # hash: id → when, and who did what, and why
        self.acts_order = prefix + "acts_order"  # sorted set: id → number
        self.documents = prefix + "documents"  # hash: name → text
        self.documents_number = prefix + "documents_number"  # how often they changed
        self.documents_latest = prefix + "documents_latest"  # list: the ids of their latest changes
        self.memos = prefix + "memos"  # sorted set: name → until when it stays

    def call(self, tail: str) -> str:
        return f"{self.prefix}call:{tail}"

    def account(self, key: str) -> str:
        return f"{self.prefix}account:{key}"

    def run(self, run: str) -> str:
        return f"{self.prefix}run:{run}"

    def recent(self, run: str) -> str:
        """A list: "tail fingerprint" of a run's last holds, the latest first, where the policy looks for loops."""
        return f"{self.prefix}recent:{run}"

    def ring(self, run_scope: str) -> str:
        """A list: the tails of its last refusals, the latest first."""
        return f"{self.prefix}ring:{run_scope}"

    def owner(self, key: str) -> str:
        """A sorted set: the runs of a key → second of last use."""
        return f"{self.prefix}owner:{key}"

    def active(self, key: str) -> str:
        """A sorted set: the runs of a key that may count as active → last use."""
        return f"{self.prefix}active:{key}"

    def memo(self, name: str) -> str:
        return f"{self.prefix}memo:{name}"

    def spend(self, day: int) -> str:
        """A hash: group → packed usd, tokens, calls."""
        return f"{self.prefix}spend:{day}"
