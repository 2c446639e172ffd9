"""Two nodes that buy from each other: lost, doubled and reordered messages, and books that agree in the end.

Each node keeps its own two accounts (what it owes, and what it is owed) and moves them by `apply` alone. Every message
stays in the post for good, so it can come late, twice, after later ones, or not before the end of a run; then all of
them are handed out until nothing moves, and both books must say the same.
"""

from collections.abc import Iterator

from attrs import define, field, frozen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.account import Account, AccountError, AccountKey, Reservation, apply
from ledger.changes import (
    Acknowledged,
    Admitted,
    Authorized,
    Change,
    Claimed,
    Disputed,
    Drawn,
    Earned,
    Expired,
    Forgiven,
    ForgivenessReceived,
    Forgotten,
    Granted,
    Netted,
    Released,
    Resolved,
    Settled,
    VoucherReceived,
)

NAMES = ("alice", "bob")
KEYS = tuple(AccountKey(payer, payee, "credit", "msat") for payer, payee in (NAMES, NAMES[::-1]))
GROWING = ("authorized", "earned", "waived", "forgiven", "claimed", "settled", "netted", "grant_sequence")

nodes = st.sampled_from(NAMES)
keys = st.sampled_from(KEYS)


@frozen
class Message:
    """To one of the two, about one of the accounts; `what` names the method of `Node` that takes it."""

    to: str
    key: AccountKey
    what: str
    facts: tuple[object, ...] = ()


@define
class Node:
    """One side: its two accounts, and what it has to remember of its own decisions."""

    name: str
    accounts: dict[AccountKey, Account] = field(factory=lambda: {key: Account(key) for key in KEYS})
    acknowledged: set[bytes] = field(factory=set)
    asked_to_settle: dict[AccountKey, tuple[int, int]] = field(factory=dict)
    post: list[Message] = field(factory=list)

    def move(self, key: AccountKey, *changes: Change) -> bool:
        """Apply all of these or none; checks what holds for any change. Whether they were accepted."""
        account = before = self.accounts[key]
        try:
            for change in changes:
                account = apply(account, change)
        except AccountError:
            return False
        assert all(getattr(account, name) >= getattr(before, name) for name in GROWING)
        self.accounts[key] = account
        return True

    def send(self, key: AccountKey, what: str, *facts: object) -> None:
        other = NAMES[1 - NAMES.index(self.name)]
        self.post.append(Message(other, key, what, facts))

    # What the payer takes

    def granted(self, key: AccountKey, limit: int, window: int, sequence: int) -> None:
        assert self.move(key, Granted(limit, window, sequence))

    def refused(self, key: AccountKey, order: bytes) -> None:
        if order in self.accounts[key].orders:
            self.move(key, Released(order))

    def checkpoint(self, key: AccountKey, order: bytes, total: int) -> None:
        """Pay what came so far, while the order goes on."""
        if order not in self.acknowledged:
            assert self.move(key, Acknowledged(order, total))
            self.pay(key)
            granted = self.accounts[key].orders[order].granted
            self.send(key, "acknowledgement", order, granted, granted, self.accounts[key].authorized)

    def receipt(self, key: AccountKey, order: bytes, asked: int, granted: int) -> None:
        """Pay what is granted of it, once, and no less than was granted on the way."""
        if order in self.acknowledged:
            return
        grant = min(asked, max(granted, self.accounts[key].orders[order].granted))
        changes: list[Change] = [Released(order), Acknowledged(order, grant)]
        if grant < asked:
            changes.append(Disputed(order, asked, grant))
        assert self.move(key, *changes)
        self.acknowledged.add(order)
        self.pay(key)
        self.send(key, "acknowledgement", order, asked, grant, self.accounts[key].authorized)

    def pay(self, key: AccountKey) -> None:
        account = self.accounts[key]
        if account.owed > account.authorized:
            assert self.move(key, Authorized(account.owed))

    def forgiveness(self, key: AccountKey, total: int) -> None:
        assert self.move(key, ForgivenessReceived(total))

    def resolved(self, key: AccountKey, order: bytes, total: int) -> None:
        assert self.move(key, Resolved(order, total))

    def settled(self, key: AccountKey, total: int) -> None:
        assert self.move(key, Settled(total))

    # What the payee takes

    def order(self, key: AccountKey, order: bytes, amount: int, first: int, expires: int) -> None:
        if order in self.accounts[key].orders:
            return
        if not self.move(key, Admitted(order, amount, first, expires)):
            self.send(key, "refused", order)

    def acknowledgement(self, key: AccountKey, order: bytes, asked: int, granted: int, voucher: int) -> None:
        counted = Disputed(order, asked, granted) if granted < asked else Acknowledged(order, granted)
        assert self.move(key, VoucherReceived(voucher), counted)

    def settlement(self, key: AccountKey, before: int, total: int) -> None:
        """Lay it before the owner; one that builds on an older total brings the payer up to date instead."""
        if before == self.accounts[key].settled:
            self.asked_to_settle[key] = before, total
        else:
            self.send(key, "settled", self.accounts[key].settled)

    # What both take

    @property
    def nettable(self) -> int:
        return min(account.unsettled for account in self.accounts.values())

    def net(self, total: int) -> None:
        for key in KEYS:
            assert self.move(key, Netted(total))

    def netting(self, key: AccountKey, before: int, total: int) -> None:
        if before == self.accounts[key].netted and total - before <= self.nettable:
            self.net(total)
        self.send(key, "netted", self.accounts[key].netted)

    def netted(self, _key: AccountKey, total: int) -> None:
        self.net(total)


def agreed_debt(account: Account, owner: str) -> int:
    """What both sides count alike: the payee without what is in dispute. Below 0 if that was forgiven before."""
    counted = account.earned - account.waived - account.forgiven
    return counted - account.disputed if owner == account.key.payee else counted


class Pair(RuleBasedStateMachine):
    """The nodes, the post between them, and what they may do."""

    @initialize(terms=st.tuples(*(st.integers(60, 200) for _ in range(4))))
    def begin(self, terms: tuple[int, int, int, int]) -> None:
        self.time = 0
        self.sides = {name: Node(name) for name in NAMES}
        self.delivered: set[int] = set()
        self.post: list[Message] = []
        for node in self.sides.values():
            node.post = self.post
        for key, limit, window in zip(KEYS, terms[:2], terms[2:], strict=True):
            self.grant(key, limit, window)
        self.hand_out_everything()

    def payer(self, key: AccountKey) -> Node:
        return self.sides[key.payer]

    def payee(self, key: AccountKey) -> Node:
        return self.sides[key.payee]

    @rule(key=keys, limit=st.integers(0, 200), window=st.integers(0, 200))
    def grant(self, key: AccountKey, limit: int, window: int) -> None:
        payee = self.payee(key)
        sequence = payee.accounts[key].grant_sequence + 1
        assert payee.move(key, Granted(limit, window, sequence))
        payee.send(key, "granted", limit, window, sequence)

    @rule(key=keys, amount=st.integers(1, 30), part=st.integers(1, 4), at_once=st.booleans())
    def place_an_order(self, key: AccountKey, amount: int, part: int, at_once: bool) -> None:
        """Of which so many quarters are drawn to begin with."""
        self.time += 1
        order, first = self.time.to_bytes(32, "big"), amount * part // 4
        if self.payer(key).move(key, Admitted(order, amount, first, self.time)):
            self.payer(key).send(key, "order", order, amount, first, self.time)
            if at_once:
                self.hand_out(len(self.post) - 1)

    def orders(self, node: Node, key: AccountKey) -> Iterator[tuple[bytes, Reservation]]:
        yield from node.accounts[key].orders.items()

    @rule(key=keys, part=st.integers(0, 10), granted=st.integers(0, 10), over=st.booleans())
    def deliver(self, key: AccountKey, part: int, granted: int, over: bool) -> None:
        """A checkpoint, or the receipt, of so many tenths; the payer will grant so many tenths of it."""
        payee = self.payee(key)
        order = next((digest for digest, order in self.orders(payee, key) if order.open), None)
        if order is None:
            return
        amount = payee.accounts[key].orders[order].amount
        payee.move(key, Earned(order, amount * part // 10))
        earned = payee.accounts[key].orders[order].earned
        if over:
            self.finish(payee, key, order, earned * granted // 10)
        else:
            payee.send(key, "checkpoint", order, earned)

    @rule(key=keys, total=st.integers(1, 30))
    def draw(self, key: AccountKey, total: int) -> None:
        """Where the window bears it, an order may deliver more."""
        payee = self.payee(key)
        for order, reservation in list(self.orders(payee, key)):
            if reservation.open and payee.move(key, Drawn(order, min(total, reservation.amount))):
                return

    @rule(key=keys, amount=st.integers(4, 30), parts=st.integers(1, 8))
    def pay_as_it_goes(self, key: AccountKey, amount: int, parts: int) -> None:
        """A long answer: each part is drawn, delivered and paid before the next, if the window is empty by then."""
        self.place_an_order(key, amount, part=1, at_once=True)
        payee, order = self.payee(key), self.time.to_bytes(32, "big")
        for part in range(1, parts + 1):
            total = amount * part // parts
            if order not in payee.accounts[key].orders or not self.drawn(payee, key, order, total):
                return
            assert payee.move(key, Earned(order, total))
            payee.send(key, "checkpoint", order, total)
            for _ in range(2):  # the checkpoint, and what acknowledges it
                self.hand_out(len(self.post) - 1)

    def drawn(self, payee: Node, key: AccountKey, order: bytes, total: int) -> bool:
        """Whether an order may deliver so much by now, as it stands or by drawing it."""
        return payee.accounts[key].orders[order].drawn >= total or payee.move(key, Drawn(order, total))

    @rule(key=keys, amount=st.integers(4, 30), granted=st.integers(0, 10), receipt_arrives=st.booleans())
    def trade(self, key: AccountKey, amount: int, granted: int, receipt_arrives: bool) -> None:
        """An order that goes well, up to its receipt."""
        self.place_an_order(key, amount, part=4, at_once=True)
        payee, order = self.payee(key), self.time.to_bytes(32, "big")
        if order in payee.accounts[key].orders:
            assert payee.move(key, Earned(order, amount))
            self.finish(payee, key, order, amount * granted // 10)
            if receipt_arrives:
                self.hand_out(len(self.post) - 1)

    @rule(amounts=st.tuples(st.integers(4, 30), st.integers(4, 30)), by=nodes, part=st.integers(1, 60))
    def help_each_other(self, amounts: tuple[int, int], by: str, part: int) -> None:
        for key, amount in zip(KEYS, amounts, strict=True):
            self.trade(key, amount, 10, receipt_arrives=True)
        self.what_is_on_its_way_arrives()
        self.ask_to_net(KEYS[0], by, part)

    def finish(self, payee: Node, key: AccountKey, order: bytes, granted: int) -> None:
        assert payee.move(key, Released(order))
        payee.send(key, "receipt", order, payee.accounts[key].orders[order].earned, granted)

    @rule(key=keys, age=st.integers(0, 3))
    def let_expire(self, key: AccountKey, age: int) -> None:
        """Each side lets go of what is old; the payee answers no order any more that it gave up so."""
        payer, payee = self.payer(key), self.payee(key)
        assert payer.move(key, Expired(self.time - age if self.time > age else 0))
        for order, reservation in list(self.orders(payee, key)):
            if reservation.open and reservation.expires < self.time - age:
                self.finish(payee, key, order, reservation.earned)

    @rule(key=keys, part=st.integers(1, 4))
    def let_go_of_a_disputed_part(self, key: AccountKey, part: int) -> None:
        payee = self.payee(key)
        for order, reservation in list(self.orders(payee, key)):
            total = reservation.earned - reservation.waived - reservation.disputed * part // 4
            if reservation.disputed and payee.move(key, Resolved(order, total)):
                payee.send(key, "resolved", order, total)
                return

    @rule(key=keys, part=st.integers(1, 4))
    def pay_a_disputed_part_after_all(self, key: AccountKey, part: int) -> None:
        payer = self.payer(key)
        for order, reservation in list(self.orders(payer, key)):
            if reservation.disputed:
                total = reservation.earned + reservation.disputed * part // 4
                assert payer.move(key, Acknowledged(order, total))
                payer.pay(key)
                payer.send(key, "acknowledgement", order, total, total, payer.accounts[key].authorized)
                return

    @rule(key=keys, amount=st.integers(1, 60))
    def forgive(self, key: AccountKey, amount: int) -> None:
        payee = self.payee(key)
        if payee.move(key, Forgiven(min(amount, payee.accounts[key].forgivable))):
            payee.send(key, "forgiveness", payee.accounts[key].forgiven)

    @rule(key=keys, total=st.integers(0, 200))
    def claim(self, key: AccountKey, total: int) -> None:
        self.payee(key).move(key, Claimed(total))

    @rule(key=keys, amount=st.integers(1, 60))
    def ask_to_settle(self, key: AccountKey, amount: int) -> None:
        before = self.payer(key).accounts[key].settled
        self.payer(key).send(key, "settlement", before, before + amount)

    @rule(key=keys)
    def confirm_a_settlement(self, key: AccountKey) -> None:
        payee = self.payee(key)
        asked = payee.asked_to_settle.pop(key, None)
        if asked is not None and asked[0] == payee.accounts[key].settled:
            assert payee.move(key, Settled(asked[1]))
            payee.send(key, "settled", asked[1])

    @rule(key=keys, by=nodes, part=st.integers(1, 60))
    def ask_to_net(self, key: AccountKey, by: str, part: int) -> None:
        node = self.sides[by]
        if node.nettable:
            before = node.accounts[key].netted
            node.send(key, "netting", before, before + min(part, node.nettable))

    @precondition(lambda self: self.post)
    @rule(data=st.data())
    def a_message_arrives(self, data: st.DataObject) -> None:
        """Any that was ever sent: late, again, or before those that were sent before it."""
        self.hand_out(len(self.post) - 1 - data.draw(st.integers(0, len(self.post) - 1)))

    @precondition(lambda self: self.post)
    @rule()
    def what_is_on_its_way_arrives(self) -> None:
        """The latest first, and not yet what it brings about."""
        for at in reversed([at for at in range(len(self.post)) if at not in self.delivered]):
            self.hand_out(at)

    def hand_out(self, at: int) -> None:
        message = self.post[at]
        self.delivered.add(at)
        node = self.sides[message.to]
        getattr(node, message.what)(message.key, *message.facts)

    def hand_out_everything(self) -> None:
        """Each message that has not arrived yet, and those that they bring about: the latest first."""
        while left := [at for at in range(len(self.post)) if at not in self.delivered]:
            for at in reversed(left):
                self.hand_out(at)

    @invariant()
    def the_books_keep_their_rules(self) -> None:
        for node in getattr(self, "sides", {}).values():
            for account in node.accounts.values():
                assert account.claimed <= account.due
                assert account.earned >= account.waived
                assert all(0 <= order.earned <= order.amount for order in account.orders.values())
                assert all(order.drawn <= order.amount for order in account.orders.values())

    @invariant()
    def a_payee_delivers_no_more_than_it_has_drawn(self) -> None:
        for key in KEYS if hasattr(self, "sides") else ():
            for order in self.payee(key).accounts[key].orders.values():
                assert order.earned <= order.drawn

    @invariant()
    def nobody_believes_in_more_than_the_other_signed(self) -> None:
        for key in KEYS if hasattr(self, "sides") else ():
            payer, payee = self.payer(key).accounts[key], self.payee(key).accounts[key]
            assert payee.authorized <= payer.authorized <= payer.earned
            assert payer.earned <= payee.earned
            assert payer.settled <= payee.settled
            assert payer.forgiven <= payee.forgiven

    @rule()
    def all_is_said_and_the_books_agree(self) -> None:
        self.hand_out_everything()
        for key in KEYS:
            payee = self.payee(key)
            for order, reservation in list(self.orders(payee, key)):
                if reservation.open:
                    self.finish(payee, key, order, reservation.amount)
        self.hand_out_everything()
        for key in KEYS:
            self.assert_agreed(key)
            for node in self.sides.values():
                assert node.move(key, Forgotten(self.time + 1))
            assert self.payer(key).accounts[key].orders.keys() == self.payee(key).accounts[key].orders.keys()
        self.post.clear()
        self.delivered.clear()

    def assert_agreed(self, key: AccountKey) -> None:
        payer, payee = (node.accounts[key] for node in (self.payer(key), self.payee(key)))
        for name in ("limit", "window", "authorized", "forgiven", "settled", "netted", "disputed", "reserved"):
            assert getattr(payer, name) == getattr(payee, name), name
        assert agreed_debt(payer, key.payer) == agreed_debt(payee, key.payee)
        assert payer.netted == self.payer(key).accounts[AccountKey(key.payee, key.payer, key.rail, key.unit)].netted

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        self.all_is_said_and_the_books_agree()
        for key in KEYS:
            payee = self.payee(key)
            for order, reservation in list(self.orders(payee, key)):
                if reservation.disputed and payee.move(key, Resolved(order, reservation.granted)):
                    payee.send(key, "resolved", order, reservation.granted)
        self.hand_out_everything()
        assert all(self.sides[name].accounts[key].disputed == 0 for name in NAMES for key in KEYS)
        for key in KEYS:
            self.assert_agreed(key)


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
