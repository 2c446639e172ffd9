"""The orders of an account behave as a dict that is copied at each change, at any size."""

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from ledger.orders import Orders, evolve, unchecked


@frozen(slots=False)
class Order:
    amount: int
    open: bool = True
    drawn: int = 0

    @property
    def rest(self) -> int:
        return self.amount if self.open else 0

    @property
    def ahead(self) -> int:
        return self.drawn if self.open else 0


digests = st.sampled_from([bytes([n]) * 32 for n in (0, 1, 63, 64, 65, 128)])
values = st.builds(Order, st.integers(0, 9), st.booleans(), st.integers(0, 9))


@given(st.lists(st.tuples(digests, values), max_size=20))
def test_each_copy_is_what_a_copied_dict_would_be_and_the_earlier_ones_stay(steps: list[tuple[bytes, Order]]) -> None:
    plain: dict[bytes, Order] = {}
    orders: Orders[Order] = Orders()
    history = [(dict(plain), orders)]
    for digest, order in steps:
        plain[digest] = order
        orders = orders.with_one(digest, order)
        history.append((dict(plain), orders))
    for expected, kept in history:
        assert kept == expected
        assert kept == Orders(expected)
        assert dict(kept) == expected
        assert len(kept) == len(expected)
        assert kept.rest == sum(order.rest for order in expected.values())
        assert kept.ahead == sum(order.ahead for order in expected.values())


@given(st.dictionaries(digests, values), st.dictionaries(digests, values))
def test_they_are_equal_if_they_hold_the_same(first: dict[bytes, Order], second: dict[bytes, Order]) -> None:
    assert (Orders(first) == Orders(second)) == (first == second)
    assert (Orders(first) != second) == (first != second)


def test_what_is_not_there_is_missing() -> None:
    orders = Orders({b"1" * 32: Order(1)})
    assert b"2" * 32 not in orders
    assert not orders.__contains__("text")
    assert orders.get(b"") is None
    assert orders.find(b"2" * 32) is None
    assert orders.find(b"1" * 32) == Order(1)
    with pytest.raises(KeyError):
        orders[b"2" * 32]


def test_they_cannot_be_hashed_as_they_are_compared_by_content() -> None:
    with pytest.raises(TypeError):
        hash(Orders())


def test_a_value_made_unchecked_is_like_any_other() -> None:
    made = unchecked(Order, {"amount": 5, "open": True, "drawn": 0})
    assert (made, repr(made), hash(made)) == (Order(5), repr(Order(5)), hash(Order(5)))


class TestEvolve:
    def test_a_copy_differs_where_it_was_said_to(self) -> None:
        before = Order(5)
        assert evolve(before, open=False) == Order(5, False)
        assert before == Order(5)

    def test_an_attribute_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(TypeError, match="opened"):
            evolve(Order(5), opened=False)
