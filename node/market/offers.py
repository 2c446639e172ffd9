"""The offer book: the newest open Offer of each seller for each model."""

from collections.abc import Iterable
from typing import Final

from ledger.codec import Malformed
from ledger.identity import Did
from ledger.records import CLOCK_SKEW_S, Offer, Signed, check_time, open_record

# One seller may stand in the book with so many models.
MAX_PER_SELLER: Final = 64


class OfferBook:
    """Holds verified offers until they expire. Time comes in as an argument, in seconds since 1970."""

    def __init__(self) -> None:
        self._offers: dict[tuple[Did, bytes], Signed[Offer]] = {}

    def take(self, raw: bytes, seller: Did, now: float) -> Signed[Offer]:
        """Verify what a seller handed over as its offer, and keep it unless a newer one stands.

        Raises Malformed (or what derives from it) for an offer that is forged, somebody else's or out of its time.
        """
        signed = open_record(raw, Offer)
        if signed.signer != seller:
            raise Malformed(f"the offer is signed by {signed.signer}, not by {seller}")
        check_time(signed.record, int(now))
        key = (seller, signed.record.model)
        standing = self._offers.get(key)
        if standing is not None and _lives(standing, now) and standing.record.sequence > signed.record.sequence:
            return standing
        if standing is None and sum(1 for did, _ in self._offers if did == seller) >= MAX_PER_SELLER:
            raise Malformed(f"{seller} has more than {MAX_PER_SELLER} offers")
        self._offers[key] = signed
        return signed

    def keep_only(self, seller: Did, models: Iterable[bytes]) -> None:
        """Drop the seller's offers for other models than these: it does not make them any more."""
        kept = set(models)
        self._offers = {key: o for key, o in self._offers.items() if key[0] != seller or key[1] in kept}

    def standing(self, now: float) -> list[Signed[Offer]]:
        """The offers that are open now; others are dropped."""
        self._offers = {key: offer for key, offer in self._offers.items() if _lives(offer, now)}
        return list(self._offers.values())


def _lives(offer: Signed[Offer], now: float) -> bool:
    """Whether it is open; one that was issued in the future was taken before this clock was set back."""
    return offer.record.expires > now and offer.record.issued <= now + CLOCK_SKEW_S
