"""The chain that tests run on does what they ask of it."""

from ledger.rails.stablecoin.networks import checksummed, network
from tests.chain import X402_CHANNELS, Anvil

DOMAIN = "eip712Domain()"


def test_what_is_in_a_replaced_block_never_happened(chain: Anvil) -> None:
    someone = chain.wallet(dollars=5)
    chain.mine()
    chain.send(chain.deployed.dollar, "mint(address,uint256)", someone.address, 7)
    assert chain.dollars(someone.address) == 12
    chain.reorganise(1)
    assert chain.dollars(someone.address) == 5
    assert chain.pending() == []


def test_what_was_mined_outlives_the_process(chain: Anvil) -> None:
    someone = chain.wallet(dollars=5)
    block = chain.block
    with chain.without_mining():
        chain.rpc("eth_sendTransaction", {"from": chain.rpc("eth_accounts")[0], "to": someone.address, "value": "0x1"})
        with chain.down():
            pass
        assert chain.pending() == []
    assert (chain.dollars(someone.address), chain.block) == (5, block + 1)
    assert chain.rpc("eth_getLogs", {"fromBlock": hex(block), "toBlock": hex(block)})


def test_a_dropped_transaction_is_not_mined(chain: Anvil) -> None:
    someone = chain.wallet()
    with chain.without_mining():
        chain.rpc("eth_sendTransaction", {"from": chain.rpc("eth_accounts")[0], "to": someone.address, "value": "0x1"})
        (waiting,) = chain.pending()
        chain.drop(waiting)
        chain.mine()
    assert chain.rpc("eth_getTransactionReceipt", waiting) is None


def test_the_channels_at_x402s_address_bind_that_address(chain: Anvil) -> None:
    shape = "bytes1,string,string,uint256,address,bytes32,uint256[]"
    for address in (X402_CHANNELS, chain.deployed.channels):
        found = chain.call(address, DOMAIN, returns=shape)
        assert found[1:5] == ("x402 Batch Settlement", "1", 31337, address.lower())


def test_the_network_anvil_is_what_is_deployed(chain: Anvil) -> None:
    known = network("anvil")
    ours = known.deployment(bytes.fromhex(chain.deployed.channels[2:]))
    assert checksummed(known.token.address) == chain.deployed.dollar
    assert ours.erc3009_collector is not None
    assert ours.approve_collector is not None
    assert checksummed(ours.erc3009_collector) == chain.deployed.erc3009_collector
    assert checksummed(ours.approve_collector) == chain.deployed.approve_collector
    assert checksummed(known.deployment().contract) == X402_CHANNELS
