"""Money is an integer number of microcents (1 USD = 100,000,000). Every division says which way it rounds."""

import re
from typing import Final, NewType

Microcents = NewType("Microcents", int)

MICROCENTS_PER_USD: Final = 100_000_000
# Above this, a balance could leave 2^53 and lose exactness in a Lua number (design: section 6).
MAX_LIMIT_USD: Final = 50_000_000
MAX_AMOUNT: Final = MAX_LIMIT_USD * MICROCENTS_PER_USD

_USD = re.compile(r"\$?(\d{1,12})(?:\.(\d{1,8}))?", re.ASCII)


def parse_usd(text: str) -> Microcents:
    """`"$5"`, `"$5.00"` or `"0.31"` → microcents, exactly. ValueError says what was expected."""
    match = _USD.fullmatch(text.strip())
    if match is None:
        raise ValueError('expected an amount in USD such as "$5.00", with at most 8 decimals')
    whole, fraction = match.group(1), match.group(2) or ""
    amount = int(whole) * MICROCENTS_PER_USD + int(fraction.ljust(8, "0"))
    if amount > MAX_AMOUNT:
        raise ValueError(f"expected at most ${MAX_LIMIT_USD:,}")
    return Microcents(amount)


def format_usd(amount: int) -> str:
    """Microcents → a decimal string that loses nothing: at least two decimals, at most eight, no trailing zeros beyond two."""
    if amount < 0:
        return "-" + format_usd(-amount)
    whole, fraction = divmod(amount, MICROCENTS_PER_USD)
    cents, rest = divmod(fraction, 1_000_000)
    return f"{whole}.{fraction:08d}".rstrip("0") if rest else f"{whole}.{cents:02d}"


def price_of(tokens: int, microcents_per_million_tokens: int) -> Microcents:
    """Rounds up: over-protect by one microcent rather than overspend by one."""
    return Microcents(-(-tokens * microcents_per_million_tokens // 1_000_000))
