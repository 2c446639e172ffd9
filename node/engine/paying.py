"""Paying a remote backend for each request: what its client needs of whoever has the money.

Theory of operation. A server that wants to be paid answers 402 and says what it wants. The request is sent again with a
payment, and the answer tells what was charged: in a header where the sum is known when the answer begins, else in the
stream's last comment. A payment that was sent and of which nothing was heard is neither made nor failed: who has the
money presents the same one the next time. Formats are x402's, version 2 (https://github.com/coinbase/x402).
"""

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from attrs import frozen

from ledger.money import Amount

# What the server wants; the payment; what became of it. All three are JSON in base64.
REQUIRED: Final = "PAYMENT-REQUIRED"
SIGNATURE: Final = "PAYMENT-SIGNATURE"
RESPONSE: Final = "PAYMENT-RESPONSE"
# The same in a stream, whose headers are gone before the sum is known: a comment, which readers of events pass over.
RESPONSE_LINE: Final = b": PAYMENT-RESPONSE: "


@frozen
class Demand:
    """What a request may take, in tokens: the prompt's, and the most of its answer."""

    prompt_tokens: int
    max_tokens: int


class Payment(Protocol):
    """One request's payment, in the journal before its headers are sent. Only the latest headers are of use."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What to send with the request."""

    async def taken(self, response: str) -> None:
        """What the server says that it charged; said again it counts for nothing. Raises RemoteFailed."""

    async def refused(self, required: str, why: str) -> None:
        """The server wants it otherwise, and says `why`, or "". Returns when the headers are such that asking once more
        makes sense.

        Raises RemoteFailed, RemoteBusy.
        """


class Payer(Protocol):
    """Has the money for one remote backend, which is asked for one answer at a time."""

    @property
    def charged(self) -> int:
        """What its answers have cost since the start, in the unit of its price."""

    @property
    def max_per_day(self) -> Amount | None:
        """What it may be paid in a day, if its owner bounds that; the owner's bound of all buying holds as well."""

    def spent_today(self) -> Amount:
        """What it was paid since midnight UTC, also before the start, and may still take of what it was promised."""

    def paying(self, required: str, demand: Demand) -> AbstractAsyncContextManager[Payment]:
        """Promise what a server wants for a request, within the owner's limits. Raises RemoteFailed, RemoteBusy."""


# What a refusal's body is read of, and how much of its reason is repeated.
MAX_REFUSAL: Final = 64 * 1024
_MAX_REASON: Final = 200


def reason_in(body: bytes) -> tuple[str, object]:
    """What a refusal in OpenAI's shape says of why not, if that is plain text, and its code for it."""
    try:
        error: Any = json.loads(body)["error"]
        said, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", None
    return (said[:_MAX_REASON] if isinstance(said, str) and said.isprintable() else ""), code
