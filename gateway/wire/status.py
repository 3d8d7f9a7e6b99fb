"""What a provider's status says about money: was the call billed, and may it be sent again? Pure.

    status                          billed?    the hold is          sent again under the same hold?
    2xx                             yes        settled by usage     no
    3xx                             no         released             no: a redirect is never followed
    429, 500, 503, 529              no         released             yes, bounded
    other 4xx                       no         released             no: the answer would be the same
    502, 504, 520–528, 530, others  unknown    left to its lease    no: the provider may be generating behind what gave up waiting

529 stands in the row of the provider's own answers: it is Anthropic's `overloaded_error`, given before any output, and no intermediary
is known to send it for an origin that had taken the request. 530 is Cloudflare's own, so it belongs to the unknown ones.
"""

from typing import Final

_BUSY: Final = frozenset({429, 500, 503, 529})


def released_by(status: int) -> bool:
    """Whether the status proves that nothing was billed: the hold can be given back."""
    return 300 <= status < 500 or status in _BUSY


def may_be_sent_again(status: int) -> bool:
    """Whether the provider turned the call away for now: nothing was billed, and the same request may succeed later."""
    return status in _BUSY


def worth_another_provider(status: int) -> bool:
    """Whether the failure is this provider's, rather than the request's: another may serve it. 404: it has no such model."""
    return status == 404 or status == 408 or status in _BUSY or not (released_by(status) or 200 <= status < 300)
