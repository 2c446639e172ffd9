"""What is left of money paid in advance comes back from a node's door, once; other sellers say that they cannot."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from eth_account.messages import encode_typed_data

from ledger.account import Account
from ledger.effects import Effect, draw_up, free_collateral
from ledger.money import Amount
from ledger.rails.port import Answer
from ledger.rails.stablecoin.networks import network
from ledger.rails.stablecoin.transfers import Authorization
from node.exchange.effects import EffectDriver, NotNow
from node.exchange.strangers import did_of_wallet, refund_nonce
from node.gateway.paying.asking_back import AskingBack
from node.gateway.paying.fates import Sweeper
from node.models.tokenizer import Tokenizer
from tests.chain import CHAIN_ID, Anvil
from tests.node.strangers import NETWORK, Stall, raw, stall, until
from tests.node.trading import engine_of
from tests.node.x402_buyer import DOLLARS, Buyer, OpenWallet, buying, moving, uusd
from tests.node.x402_seller import selling


@pytest.fixture
async def buyer(chain: Anvil, tmp_path: Path) -> AsyncIterator[Buyer]:
    async with buying(chain, tmp_path) as found:
        yield found


@pytest.fixture
async def shop(chain: Anvil, speaking: Tokenizer, tmp_path: Path) -> AsyncIterator[Stall]:
    engine = engine_of(speaking, slots=4)
    async with stall(chain, tmp_path / "seller", speaking, engine, chain.wallet(), schemes=("exact",)) as found:
        yield found
    await engine.close()


@define
class Customer:
    """One that has money with a seller."""

    chain: Anvil
    buyer: Buyer
    driver: EffectDriver

    @property
    def account(self) -> Account:
        (found,) = self.buyer.payments.accounts()
        return found

    @property
    def has(self) -> int:
        return self.chain.dollars("0x" + self.buyer.wallet.address.hex())

    @property
    def told(self) -> tuple[str, str] | None:
        tracked = self.buyer.book.journal.books.effects.get(self.account.key)
        return None if tracked is None else (tracked.state, tracked.why)

    async def step(self) -> None:
        self.buyer.clock.advance(130)
        await self.driver.step()


@pytest.fixture
async def customer(chain: Anvil, tmp_path: Path, buyer: Buyer, shop: Stall) -> AsyncIterator[Customer]:
    url = f"{shop.url}/v1"
    assert await buyer.ask_at(url, buyer.purse(max_payment=uusd(10_000)), "memory", 8)
    async with moving(chain, tmp_path, buyer, url) as driver:
        yield Customer(chain, buyer, driver)


async def test_what_is_left_comes_back_and_both_books_say_so(customer: Customer, shop: Stall) -> None:
    paid, cost = DOLLARS - customer.has, customer.account.owed
    assert 0 < cost < paid
    with pytest.raises(NotNow, match="cannot go back"):
        await customer.driver.ask(customer.account.key, "refund", paid - cost + 1)

    await customer.driver.ask(customer.account.key, "refund", paid - cost)
    assert customer.told == ("unknown", "the seller says that it sends the money back")
    assert customer.account.available == 0
    await until(lambda: customer.has == DOLLARS - cost)
    await customer.step()
    assert customer.told is not None
    assert customer.told[0] == "settled"
    (theirs,) = shop.accounts("prepaid")
    assert theirs.funded - theirs.withdrawn == customer.account.funded - customer.account.withdrawn == cost


@pytest.mark.parametrize("over", [False, True])
async def test_all_that_is_left_after_several_requests_comes_back_once(
    customer: Customer, shop: Stall, over: bool
) -> None:
    """Whether what was signed for the later ones, which the balance has paid, can still be taken or not."""
    prepaid = DOLLARS - customer.has
    for _ in range(3):
        await customer.buyer.ask_at(f"{shop.url}/v1", customer.buyer.purse(max_payment=uusd(10_000)), "memory", 8)
    assert DOLLARS - customer.has == prepaid
    if over:
        customer.buyer.clock.advance(3_600)
        await Sweeper(customer.buyer.payments, customer.buyer.signing).sweep()
    (theirs,) = shop.accounts("prepaid")
    left, cost = free_collateral(customer.account), customer.account.owed
    assert left == free_collateral(theirs) == prepaid - cost > 0

    await customer.driver.ask(customer.account.key, "refund", left)
    assert customer.told == ("unknown", "the seller says that it sends the money back")
    await until(lambda: customer.has == DOLLARS - cost)
    for _ in range(3):
        await customer.step()
    tracked = customer.buyer.book.journal.books.effects.get(customer.account.key)
    assert tracked is None or tracked.state == "settled"
    customer.buyer.clock.advance(3_600)
    await Sweeper(customer.buyer.payments, customer.buyer.signing).sweep()
    assert customer.has == DOLLARS - cost
    (theirs,) = shop.accounts("prepaid")
    assert (free_collateral(customer.account), free_collateral(theirs), customer.account.reserved) == (0, 0, 0)
    assert customer.account.capacity == theirs.capacity == cost


async def test_where_the_seller_has_charged_more_than_is_known_here_what_it_says_is_left_comes_back(
    customer: Customer, shop: Stall, chain: Anvil, tmp_path: Path
) -> None:
    """The same wallet has paid from elsewhere: so it is as well where an answer was lost, and its cost with it."""
    (tmp_path / "elsewhere").mkdir()
    async with buying(chain, tmp_path / "elsewhere", OpenWallet(chain, customer.buyer.wallet.account)) as other:
        await other.ask_at(f"{shop.url}/v1", other.purse(max_payment=uusd(10_000)), "memory", 8)
    (theirs,) = shop.accounts("prepaid")
    ours, left, before = free_collateral(customer.account), free_collateral(theirs), customer.has
    assert 0 < left < ours

    tracked = await customer.driver.ask(customer.account.key, "refund", ours)
    assert tracked is not None
    assert tracked.state == "failed"
    assert f"{Amount(left, 'uusd')} is left" in tracked.why
    assert "`wallet withdraw` with --what-is-left" in tracked.why
    await customer.driver.dismiss(tracked.effect.key)
    await customer.driver.ask(customer.account.key, "refund", left)
    await until(lambda: customer.has == before + left)
    await customer.step()
    assert free_collateral(customer.account) == ours - left  # what differs stays to be seen


class Lagging(OpenWallet):
    """A wallet whose view of the chain lags behind: no transfer shows."""

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        return (False,) if name == "authorizationState" else await super().read(to, name, *values, deep=deep)


async def test_however_often_it_is_asked_for_it_comes_once(chain: Anvil, tmp_path: Path, shop: Stall) -> None:
    async with buying(chain, tmp_path, Lagging(chain, chain.wallet(DOLLARS))) as buyer:
        await buyer.ask_at(f"{shop.url}/v1", buyer.purse(max_payment=uusd(10_000)), "memory", 8)
        (account,) = buyer.payments.accounts()
        before = DOLLARS - account.funded

        async def ask(effect: Effect) -> str:
            """By one who has forgotten that it was asked for."""
            asking = AskingBack(buyer.session, buyer.signing)
            asking.know("shop", f"{shop.url}/v1", lambda: buyer.payments.pay_to("shop"))
            answer = await asking.perform(effect)
            return answer.fate if answer.fate == "unknown" else answer.why

        one, other = (draw_up(account, "refund", 500, bytes([name]) * 32) for name in (1, 2))
        # The third time nothing of it is in the seller's ledger any more, and the token knows.
        for effect, back in ((one, 500), (one, 500), (other, 1_000), (one, 1_000)):
            assert await ask(effect) == "unknown"
            await until(lambda back=back: chain.dollars("0x" + buyer.wallet.address.hex()) == before + back)  # type: ignore[misc]
        (theirs,) = shop.accounts("prepaid")
        assert theirs.withdrawn == 1_000


@pytest.mark.parametrize("sent", [500, 1])
async def test_what_came_back_is_what_the_token_says_has_moved(customer: Customer, chain: Anvil, sent: int) -> None:
    """A seller can use the nonce of what it gives back up for less."""
    seller, token = chain.wallet(dollars=1_000), network("anvil").token
    theirs = did_of_wallet(NETWORK, raw(seller.address))
    account = evolve(Account(evolve(customer.account.key, payee=theirs)), funded=1_000, funded_sequence=1)
    effect = draw_up(account, "refund", 500, b"e" * 32)
    me = customer.buyer.wallet.address
    given = Authorization(raw(seller.address), me, sent, 0, 2**40, refund_nonce(me, effect.key))
    typed = encode_typed_data(full_message=given.typed(CHAIN_ID, token))
    call = given.call(token, bytes(seller.sign_message(typed).signature))
    chain.rpc("anvil_impersonateAccount", seller.address)
    there = {"from": seller.address, "to": f"0x{call.to.hex()}", "data": f"0x{call.data.hex()}"}
    assert chain.rpc("eth_sendTransactionSync", there)["status"] == "0x1"
    chain.mine(3)
    rail = customer.driver._rails["prepaid"]
    for answer in (await rail.fate(effect), await rail.perform(effect)):
        assert answer == Answer("settled", 500 if sent == 500 else 0)


async def test_a_seller_that_is_down_is_asked_again(customer: Customer, shop: Stall, chain: Anvil) -> None:
    with chain.down():
        tracked = await customer.driver.ask(customer.account.key, "refund", 1_000)
        assert tracked is not None
        assert tracked.under_way
    before = DOLLARS - customer.account.funded
    for _ in range(3):
        await customer.step()
    await until(lambda: customer.has == before + 1_000)
    await customer.step()
    assert customer.told is not None
    assert customer.told[0] == "settled"


async def test_a_seller_that_has_no_way_to_give_back_says_so_and_nothing_is_lost(
    chain: Anvil, tmp_path: Path, buyer: Buyer
) -> None:
    async with selling(chain, "exact") as seller:
        seller.tells = lambda said: said.update(extra={"balance": "700", "chargedAmount": "300"})
        await buyer.ask(seller, buyer.purse())
        async with moving(chain, tmp_path, buyer, seller.url) as driver:
            customer = Customer(chain, buyer, driver)
            left = customer.account.available
            assert left == 700
            tracked = await driver.ask(customer.account.key, "refund", left)
            assert tracked is not None
            assert (tracked.state, "gives nothing back" in tracked.why) == ("failed", True)
            await driver.dismiss(tracked.effect.key)
            assert customer.account.available == left


async def test_a_seller_that_is_no_remote_any_more_cannot_be_asked(
    chain: Anvil, tmp_path: Path, buyer: Buyer, shop: Stall
) -> None:
    await buyer.ask_at(f"{shop.url}/v1", buyer.purse(max_payment=uusd(10_000)), "memory", 8)
    async with moving(chain, tmp_path, buyer) as driver:
        customer = Customer(chain, buyer, driver)
        tracked = await driver.ask(customer.account.key, "refund", 1)
    assert tracked is not None
    assert "name it in [[remotes]]" in tracked.why
