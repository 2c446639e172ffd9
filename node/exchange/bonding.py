"""The bonds that this node's wallet has locked: their terms on disk, their money on the chain, and the one that offers
name.

Theory of operation. A bond is found by its terms, which nothing but the contract's events repeats: they are in the
journal, as this node signed them, before any money goes there. Each bond has a serial number, and with it an id of its
own; a wish for terms that one has already is about that one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from attrs import evolve, frozen

from ledger import codec
from ledger.journal import Kept
from ledger.money import Amount
from ledger.rails.stablecoin.bond_terms import BondRefused, BondTerms, Stake, check_terms, named, salt_of, terms_of
from ledger.rails.stablecoin.bonds import Bonds, Done
from ledger.rails.stablecoin.chain import Outcome
from ledger.rails.stablecoin.slashes import Slash, Slashes
from ledger.records import Bond, strict_converter
from node.exchange.book import Book
from node.exchange.searching import Search

_LOOK_S: Final = 120.0
_READ_S: Final = 30.0
_SEARCH_S: Final = 600.0  # a slash may have been proposed months ago
_KIND: Final = "bond"
_CONTENT: Final = "application/idlemesh-bond+cbor"
_MAX_RECORD: Final = 2_048
_PAGE: Final = 500
_MAX_SERIAL: Final = 10_000  # of bonds that are looked for: nobody has so many
_NOTHING_KNOWN: Final = "this node has locked no bond yet: `idlemesh wallet bond --help` shows how"

_log = logging.getLogger(__name__)


@frozen
class OwnBond:
    """One bond of this node's."""

    id: bytes
    serial: int
    terms: BondTerms


@frozen
class Conditions:
    """What the seller chooses of a bond's terms; periods in seconds. `sink` of zeros: what exceeds damage is burned."""

    arbiters: tuple[bytes, ...]
    quorum: int
    notice: int
    challenge: int
    sink: bytes = bytes(20)


class OwnBonds:
    """This node's bonds in one contract; acts raise BondRefused and ChainError."""

    def __init__(self, book: Book, bonds: Bonds, owner: bytes, token: bytes, chosen: bytes | None) -> None:
        """`owner` is the wallet's address, `chosen` the bond that offers name: None takes the largest."""
        self.known: Final = Slashes(bonds.chain, bonds.place)  # all slashes in that contract
        self._running: dict[bytes, list[Slash]] = {}  # by bond, as they were seen last
        self._book, self._bonds, self._owner, self._token = book, bonds, owner, token
        self._chosen = chosen
        self._own: dict[bytes, OwnBond] = {}
        self._stakes: dict[bytes, Stake] = {}
        self._pledged: Bond | None = None
        self._lock = asyncio.Lock()
        self._search = Search(self._recover)

    @staticmethod
    async def open(book: Book, bonds: Bonds, owner: bytes, token: bytes, chosen: bytes | None) -> "OwnBonds":
        """Those that the journal has, in this contract."""
        opened = OwnBonds(book, bonds, owner, token, chosen)
        before: int | None = None
        while page := await book.journal.list_records(_KIND, _PAGE, before):
            before = page[-1].sequence
            for record in page:
                opened._remember(_opened(record.raw))
        opened._own = dict(sorted(opened._own.items(), key=lambda one: one[1].serial))
        return opened

    def _remember(self, bond: Bond) -> None:
        if (bond.network, bond.contract) == (self._bonds.place.network, self._bonds.place.contract):
            terms = terms_of(bond, self._book.me)
            made = OwnBond(self._bonds.place.bond_id(terms), bond.serial, terms)
            self._own[made.id] = made

    @property
    def all(self) -> list[OwnBond]:
        """Oldest first."""
        return list(self._own.values())

    def find(self, beginning: str) -> OwnBond:
        """A bond by the beginning of its id; by nothing, the only one. Raises BondRefused."""
        if not self._own:
            raise BondRefused(_NOTHING_KNOWN)
        wanted = beginning.lower().removeprefix("0x")
        found = [bond for bond in self._own.values() if bond.id.hex().startswith(wanted)]
        if len(found) != 1:
            many = f"{len(found)} bonds" if found else "no bond"
            raise BondRefused(f"{many} of this node's begin with 0x{wanted[:64]}: `idlemesh wallet bond` lists them")
        return found[0]

    async def stake(self, bond: OwnBond) -> Stake:
        """What is in it now, at the head."""
        return await self._bonds.stake(bond.id)

    async def lock_new(
        self, said: Conditions, total: int, wait: Callable[[bytes], Awaitable[Outcome]]
    ) -> tuple[OwnBond, Done]:
        """Lock so much in all in a bond with these terms: the one that has them, or a new one."""
        async with self._lock:
            bond = self._with(said)
            check_terms(bond.terms)
            if bond.id not in self._own:
                await self._keep(bond, total)
        return bond, await self.lock(bond, total, wait)

    async def recover(self, wait_s: float) -> list[OwnBond] | None:
        """Bonds on the chain that the journal has lost, taken up again; None: the search goes on, ask once more.

        All blocks are read, which takes minutes on a chain that is old.
        """
        return await self._search.ask(wait_s)

    async def _recover(self) -> list[OwnBond]:
        found = []
        for terms in await self._bonds.find():
            serial = next((n for n in range(1, _MAX_SERIAL) if salt_of(self._book.me, n) == terms.salt), None)
            async with self._lock:
                bond = OwnBond(self._bonds.place.bond_id(terms), serial or 0, terms)
                if serial is not None and bond.id not in self._own:
                    await self._keep(bond, 1)
                    found.append(bond)
        return found

    async def _keep(self, bond: OwnBond, amount: int) -> None:
        signed = named(bond.terms, self._bonds.place, bond.serial, amount)
        await self._book.post(records=(Kept(_KIND, _signed(signed, self._book)),))
        self._own[bond.id] = bond

    async def lock(self, bond: OwnBond, total: int, wait: Callable[[bytes], Awaitable[Outcome]]) -> Done:
        """Raise a bond to so much in all."""
        return await self._bonds.lock(bond.terms, total, wait)

    async def ask_back(self, bond: OwnBond, amount: int) -> Done:
        """Begin the notice for a part; 0: for all that is locked."""
        return await self._bonds.ask_back(bond.terms, amount or (await self.stake(bond)).locked)

    async def keep(self, bond: OwnBond) -> Done:
        """Let what was asked back stay locked."""
        return await self._bonds.keep(bond.terms)

    async def take(self, bond: OwnBond) -> Done:
        """Take what was asked back, after its notice."""
        return await self._bonds.take(bond.terms)

    # What offers name

    @property
    def pledged(self) -> Bond | None:
        """The bond that offers name, with what of it was free when the chain was last seen; None: there is none."""
        return self._pledged

    async def run(self) -> None:
        """Look every now and then, until cancelled."""
        if self._chosen is not None and self._chosen not in self._own:
            lost = f"0x{self._chosen.hex()}"
            _log.warning("[sell] bond %s is not in the ledger: `idlemesh wallet bond --find` looks for it", lost)
        try:
            while True:
                await self.look()
                await self.look_for_slashes()
                await asyncio.sleep(_LOOK_S)
        finally:
            await self._search.close()

    async def look(self) -> None:
        """See what is in the bonds; of one that cannot be seen, what was seen before stands."""
        for bond in self.all:
            try:
                async with asyncio.timeout(_READ_S):
                    deep, head = await self._bonds.seen(bond.id)
            except Exception as error:  # noqa: BLE001 - the chain may fail in any way; buyers look for themselves
                _log.info("the bond 0x%s could not be seen: %s", bond.id.hex(), type(error).__name__)
            else:
                self._stakes[bond.id] = min(deep, head, key=lambda stake: stake.free)
        self._pledged = self._best()

    # Slashes

    @property
    def slashes(self) -> list[tuple[OwnBond, Slash]]:
        """Slashes of this node's bonds that are not decided, as they were seen last."""
        return [(bond, slash) for bond in self.all for slash in self._running.get(bond.id, ())]

    async def look_for_slashes(self) -> None:
        """See what runs against the bonds, and warn their owner of what is new."""
        for bond in self.all:
            try:
                async with asyncio.timeout(_SEARCH_S):
                    await self.running(bond)
            except Exception as error:  # noqa: BLE001 - as in `look`
                _log.info("slashes of the bond 0x%s could not be seen: %s", bond.id.hex(), type(error).__name__)

    async def running(self, bond: OwnBond) -> list[Slash]:
        """What runs against a bond now; may read blocks."""
        running = await self.known.running(bond.terms)
        before = {slash.evidence for slash in self._running.get(bond.id, ())}
        self._running[bond.id] = running
        for slash in running:
            if slash.evidence not in before:
                _log.warning(
                    "arbiters want to take %s of the bond 0x%s: answer them with"
                    " `idlemesh wallet slash answer 0x%s FILE`, or anyone can carry that out after %s",
                    Amount(slash.amount, "uusd"),
                    bond.id.hex(),
                    slash.evidence.hex(),
                    time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(slash.answer_by)),
                )
        return running

    def _best(self) -> Bond | None:
        wanted = [bond for bond in self.all if self._chosen in (None, bond.id)]
        free = {bond.id: self._stakes[bond.id].free for bond in wanted if bond.id in self._stakes}
        best = max(wanted, key=lambda bond: free.get(bond.id, 0), default=None)
        if best is None or not free.get(best.id, 0):
            return None
        return named(best.terms, self._bonds.place, best.serial, free[best.id])

    def _with(self, said: Conditions) -> OwnBond:
        """The bond with these terms; a new one, where there is none."""
        wish = evolve(said, arbiters=tuple(sorted(set(said.arbiters))))
        for bond in self._own.values():
            if self._made(bond.serial, wish) == bond:
                return bond
        return self._made(max((bond.serial for bond in self._own.values()), default=0) + 1, wish)

    def _made(self, serial: int, said: Conditions) -> OwnBond:
        terms = BondTerms(
            self._owner,
            self._token,
            said.sink,
            said.notice,
            said.challenge,
            said.quorum,
            said.arbiters,
            salt_of(self._book.me, serial),
        )
        return OwnBond(self._bonds.place.bond_id(terms), serial, terms)


def _signed(bond: Bond, book: Book) -> bytes:
    return codec.sign(_CONTENT, codec.encode(strict_converter().unstructure(bond)), book.identity)


def _opened(raw: bytes) -> Bond:
    found: Bond = strict_converter().structure(codec.decode(codec.unwrap(raw, _MAX_RECORD).payload, _MAX_RECORD), Bond)
    return found
