"""One order from offer to voucher, all of it real: the way everything else deviates from."""
from tests.node.trading import Customer, Store, PROMPT

async def test_x(tokenizer, clock) -> None:
    store = await Store.open(tokenizer, clock)
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    for s in range(1,20):
        d = await customer.order(offer, max_tokens=300, seed=s)
        print(s, len(d.ids), d.objection)
