import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.codec import Forged, Malformed, TooLarge
from ledger.records import CLOCK_SKEW_S, Expired, Offer, Signed
from node.market.offers import MAX_PER_SELLER, OfferBook
from tests.node.market.conftest import MakeOffer


@pytest.fixture
def offers() -> OfferBook:
    return OfferBook()


def test_an_offer_stands_until_it_expires(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    offer = make_offer()
    offers.take(offer.raw, offer.signer, now)

    assert offers.standing(now) == [offer]
    assert offers.standing(offer.record.expires - 1) == [offer]
    assert offers.standing(offer.record.expires) == []
    assert offers.standing(now) == [], "what has expired does not come back when a clock is set back"


def test_the_newest_sequence_wins_in_whatever_order_offers_arrive(make_offer: MakeOffer, now: int) -> None:
    made = [make_offer(sequence=sequence) for sequence in range(1, 5)]

    @given(st.permutations(made))
    def check(order: list[Signed[Offer]]) -> None:
        offers = OfferBook()
        for offer in order:
            offers.take(offer.raw, offer.signer, now)
        assert offers.standing(now) == [made[-1]]

    check()


def test_an_older_offer_gives_back_the_one_that_stands(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    older, newer = make_offer(sequence=1), make_offer(sequence=2)
    offers.take(newer.raw, newer.signer, now)

    assert offers.take(older.raw, older.signer, now) == newer


def test_an_offer_of_the_future_gives_way_once_the_clock_is_set_back(
    offers: OfferBook, make_offer: MakeOffer, now: int
) -> None:
    ahead = make_offer(issued=now, expires=now + 3_600, sequence=2)
    offers.take(ahead.raw, ahead.signer, now)
    right = now - 24 * 3_600
    anew = make_offer(issued=right, expires=right + 3_600, sequence=1)

    assert offers.take(anew.raw, anew.signer, right) == anew
    assert offers.standing(right) == [anew]


def test_sellers_and_models_stand_side_by_side(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    made = [make_offer(seller, model=bytes([model]) * 32) for seller in (1, 2) for model in (1, 2)]
    for offer in made:
        offers.take(offer.raw, offer.signer, now)

    assert offers.standing(now) == made


def test_a_forged_offer_is_refused(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    offer = make_offer()
    forged = offer.raw[:-1] + bytes([offer.raw[-1] ^ 1])

    with pytest.raises(Forged):
        offers.take(forged, offer.signer, now)
    assert offers.standing(now) == []


def test_another_sellers_offer_is_refused(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    mine, other = make_offer(1), make_offer(2)

    with pytest.raises(Malformed, match="is signed by"):
        offers.take(mine.raw, other.signer, now)
    assert offers.standing(now) == []


@pytest.mark.parametrize(
    ("issued", "expires"),
    [(-7_200, -CLOCK_SKEW_S - 1), (CLOCK_SKEW_S + 1, 3_600), (0, 24 * 3_600 + 1), (0, 0)],
    ids=["expired", "from the future", "lives too long", "lives no time at all"],
)
def test_an_offer_out_of_its_time_is_refused(
    offers: OfferBook, make_offer: MakeOffer, now: int, issued: int, expires: int
) -> None:
    offer = make_offer(issued=now + issued, expires=now + expires)

    with pytest.raises(Expired):
        offers.take(offer.raw, offer.signer, now)
    assert offers.standing(now) == []


def test_an_oversized_offer_is_refused(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    offer = make_offer()

    with pytest.raises(TooLarge):
        offers.take(offer.raw + bytes(Offer.limit), offer.signer, now)


def test_a_seller_cannot_fill_the_book(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    made = [make_offer(model=model.to_bytes(32, "big")) for model in range(MAX_PER_SELLER + 1)]
    for offer in made[:-1]:
        offers.take(offer.raw, offer.signer, now)

    with pytest.raises(Malformed, match="more than"):
        offers.take(made[-1].raw, made[-1].signer, now)
    other = make_offer(2)
    offers.take(other.raw, other.signer, now)
    assert len(offers.standing(now)) == MAX_PER_SELLER + 1


def test_models_that_a_seller_no_longer_makes_are_dropped(offers: OfferBook, make_offer: MakeOffer, now: int) -> None:
    gone, kept, other = make_offer(model=bytes(32)), make_offer(), make_offer(2, model=bytes(32))
    for offer in (gone, kept, other):
        offers.take(offer.raw, offer.signer, now)

    offers.keep_only(kept.signer, [kept.record.model])

    assert offers.standing(now) == [kept, other]
