"""Amounts of a network's coin, as people read them."""

import pytest

from ledger.rails.stablecoin.networks import in_coins, networks


@pytest.mark.parametrize(
    ("wei", "network", "written"),
    [
        (0, "eip155:8453", "0.0 ETH"),
        (10**18, "eip155:42161", "1.0 ETH"),
        (12 * 10**12, "eip155:31337", "0.000012 ETH"),
        (10**20 + 10**9, "eip155:137", "100.000000001 POL"),
        (1_499_999_999, "eip155:8453", "0.000000001 ETH"),
        (10**18 - 1, "eip155:8453", "1.0 ETH"),
        (499_999_999, "eip155:8453", "<0.000000001 ETH"),
        (-12 * 10**12, "eip155:8453", "-0.000012 ETH"),
        (10**18, "eip155:5", "1.0 coins"),
    ],
)
def test_wei_are_written_as_coins(wei: int, network: str, written: str) -> None:
    assert in_coins(wei, network) == written


def test_every_network_s_coin_has_a_name() -> None:
    assert {each.coin for each in networks()} == {"ETH", "POL"}
