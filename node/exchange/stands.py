"""The offers that are open, each with the prekey that opens its requests. Prekeys live in memory only."""

from collections.abc import Callable, Sequence
from typing import Final

from ledger.money import Unit
from ledger.records import CLOCK_SKEW_S, Bond, Offer, sign
from node.exchange.book import Book
from node.exchange.sale import Stand, Ware
from node.ports import Entropy
from node.wire.sealing import KEY_BYTES, KeyPair

# Short enough that a stolen prekey opens little, long enough that buyers need not ask all the time.
OFFER_LIFETIME_S: Final = 3600


class Stands:
    """What is offered, by the offers' digests."""

    def __init__(
        self,
        book: Book,
        entropy: Entropy,
        wares: Sequence[Ware],
        rails: Callable[[Unit], Sequence[str]],
        pledged: Callable[[], Bond | None] = lambda: None,
    ) -> None:
        """`rails` says how sales in a unit may be paid, `pledged` which stake offers name now."""
        self._book, self._entropy, self._wares, self._rails = book, entropy, wares, rails
        self._pledged = pledged
        self._stands: dict[bytes, Stand] = {}

    def offers(self, url: str) -> list[bytes]:
        """One for each ware, as signed; made anew when half of its life is over, or it names another stake than now.

        `url` is where buyers reach us.
        """
        now, pledged = self._book.now(), self._pledged()
        self.sweep()
        fresh = {
            s.offer.record.model: s
            for s in self._stands.values()
            if s.offer.record.expires > now + OFFER_LIFETIME_S // 2 and s.offer.record.bond == pledged
        }
        for ware in self._wares:
            model = ware.engine.manifest.digest
            if model not in fresh and ware.is_unchanged():
                stand = self._make_stand(ware, now, url)
                self._stands[stand.offer.digest] = fresh[model] = stand
        return [stand.offer.raw for stand in fresh.values() if stand.ware.is_unchanged()]

    def get(self, offer: bytes) -> Stand | None:
        """The one of an offer, while its prekey is kept."""
        return self._stands.get(offer)

    def open_one(self, offer: bytes) -> Stand | None:
        """The one of an offer that can be ordered from now."""
        stand = self._stands.get(offer)
        return stand if stand is not None and not self._is_over(stand) and stand.ware.is_unchanged() else None

    def sweep(self) -> None:
        """Offers that are over go, and their prekeys with them; those of the future too, once the clock is set back."""
        self._stands = {digest: stand for digest, stand in self._stands.items() if not self._is_over(stand)}

    def _is_over(self, stand: Stand) -> bool:
        offer, now = stand.offer.record, self._book.now()
        return offer.expires + CLOCK_SKEW_S < now or offer.issued > now + CLOCK_SKEW_S

    def _make_stand(self, ware: Ware, now: int, url: str) -> Stand:
        prekey = KeyPair.from_seed(self._entropy.bytes(KEY_BYTES))
        manifest = ware.engine.manifest
        offer = Offer(
            endpoints=(url,) if url else (),
            model=manifest.digest,
            tokenizer=manifest.tokenizer,
            name=ware.name,
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            quantization=manifest.quantization,
            context=ware.engine.context,
            engine=ware.engine.fingerprint,
            price=ware.price,
            rails=tuple(self._rails(ware.price.unit)),
            slots=ware.engine.slots,
            speed=0,
            first_token_ms=0,
            prekey=prekey.public,
            sequence=self._book.now_ms(),
            issued=now,
            expires=now + OFFER_LIFETIME_S,
            jurisdiction=ware.elsewhere.jurisdiction if ware.elsewhere else None,
            retention=ware.elsewhere.retention if ware.elsewhere else None,
            bond=self._pledged(),
        )
        return Stand(sign(offer, self._book.identity), ware, prekey)
