from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.identity import Identity
from ledger.money import Amount, Price
from node.config import MAX_CONFIG, BadConfig, Config, default_credit, did_of, load_config, parse_peer
from node.market.candidates import Weights

DID, OTHER = (Identity(bytes([seed]) * 32).did for seed in (1, 2))
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return written


def test_without_a_file_everything_has_a_default_and_nothing_is_sold() -> None:
    config = load_config(None, {})

    assert config == Config()
    assert (config.node.host, config.node.port, config.api.privacy) == ("127.0.0.1", 8080, "internal")
    assert (config.sell.price, config.peers, config.audit.rate) == (None, (), 0.05)
    assert config.buy.weights == Weights()


def test_every_setting_can_be_written(write: Write) -> None:
    config = load_config(
        write(
            f"""
            [node]
            host = "0.0.0.0"
            port = 9000
            model = "~/models/m.gguf"
            context = 4096
            threads = 2
            gpu_layers = -1
            [api]
            privacy = "public"
            route = "peers"
            max_tokens = 100
            [sell]
            price = "0.05usd:0.15usd"
            open_credit = "1usd"
            window = "0.1usd"
            exposure = "0.5usd"
            [buy]
            max_input_price = "1usd"
            max_output_price = "2usd"
            max_order_cost = "0.01usd"
            max_per_day = "3usd"
            min_reputation = 0.3
            allowed_peers = ["{DID}"]
            busy_wait = 0
            patience = 30
            [buy.weights]
            cost = 3.0
            reputation = 0
            [audit]
            rate = 1
            first = 0
            [[peers]]
            did = "{DID}"
            url = "http://192.0.2.7:8080"
            [catalogue]
            big-one = "{"ab" * 32}"
            """
        ),
        {},
    )

    assert config.sell.price == Price(50_000, 150_000, "uusd")
    limits = config.buy.limits()
    assert (limits.max_per_day, limits.min_reputation) == (Amount(3_000_000, "uusd"), 0.3)
    assert limits.allowed == frozenset({DID})
    assert config.buy.weights == Weights(cost=3.0, reputation=0.0)
    assert [did_of(peer) for peer in config.peers] == [DID]
    assert config.catalogue == {"big-one": "ab" * 32}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[node]\nport = 65536", "node.port"),
        ("[node]\nport = -1", "node.port"),
        ('[node]\nport = "http"', "node.port"),
        ("[node]\ncontext = 3", "node.context"),
        ("[node]\nthreads = 0", "node.threads"),
        ('[api]\nprivacy = "secret"', "api.privacy"),
        ('[api]\nroute = "anywhere"', "api.route"),
        ("[api]\nmax_tokens = 0", "api.max_tokens"),
        ('[sell]\nprice = "5"', "sell.price"),
        ("[sell]\nprice = 5", "sell.price"),
        ('[sell]\nprice = "1usd:1msat"', "sell.price"),
        ('[sell]\nprice = "1usd:1usd"\nwindow = "5msat"', "sell.window"),
        ('[sell]\nopen_credit = "-1usd"', "sell.open_credit"),
        ('[buy]\nmax_order_cost = "1"', "buy.max_order_cost"),
        ("[buy]\nmax_order_cost = 1", "buy.max_order_cost"),
        ("[buy]\nmin_reputation = 1.1", "buy.min_reputation"),
        ("[buy]\nmin_reputation = nan", "buy.min_reputation"),
        ('[buy]\nallowed_peers = ["me"]', "buy.allowed_peers.0"),
        ("[buy]\nbusy_wait = -1", "buy.busy_wait"),
        ("[buy]\npatience = 0", "buy.patience"),
        ("[buy.weights]\ncost = -1", "buy.weights.cost"),
        ("[buy.weights]\ncost = inf", "buy.weights.cost"),
        ("[buy.weights]\nbeauty = 1", "buy.weights.beauty"),
        ("[audit]\nrate = 2", "audit.rate"),
        ("[audit]\nfirst = -1", "audit.first"),
        (f'[[peers]]\ndid = "{DID}"', "peers.0.url"),
        (f'[[peers]]\ndid = "{DID}"\nurl = "ftp://x"', "peers.0.url"),
        (f'[[peers]]\ndid = "{DID}"\nurl = "http://user@x"', "peers.0.url"),
        ('[[peers]]\ndid = "did:key:z6Mk"\nurl = "http://x"', "peers.0.did"),
        ('[catalogue]\nx = "00"', "catalogue.x"),
        ("[sel]\nprice = 1", "sel"),
        ("[node]\nprot = 1", "node.prot"),
        ("node = 3", "node"),
        ("peers = 3", "peers"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(write: Write, text: str, field: str) -> None:
    path = write(text)

    with pytest.raises(BadConfig) as error:
        load_config(path, {})

    assert str(path) in str(error.value)
    assert field in str(error.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("[buy]\nmax_order_cost = 1", "write an amount as 0.05usd, 250000msat or 12sat"),
        ("[sell]\nprice = 5", "write IN:OUT for a million tokens, as 0.05usd:0.15usd"),
        ('[sell]\nprice = "1usd:1usd"\nwindow = "5msat"', ": sell.window is in msat, and the price in uusd: use one"),
        ('[buy]\nallowed_peers = ["me"]', "it looks like did:key:z6Mk"),
    ],
)
def test_a_bad_setting_comes_with_what_to_write(write: Write, text: str, advice: str) -> None:
    with pytest.raises(BadConfig) as error:
        load_config(write(text), {})

    assert advice in str(error.value)


def test_all_bad_settings_are_named_at_once(write: Write) -> None:
    with pytest.raises(BadConfig) as error:
        load_config(write("[node]\nport = -1\n[audit]\nrate = 7"), {})

    assert "node.port" in str(error.value)
    assert "audit.rate" in str(error.value)


def test_the_command_line_wins_over_the_file_and_leaves_the_rest(write: Write) -> None:
    path = write('[node]\nport = 1\nhost = "::1"\n[sell]\nprice = "1usd:1usd"')

    config = load_config(path, {"node": {"port": 2, "host": None}, "sell": {"open_credit": "2usd"}})

    assert (config.node.port, config.node.host) == (2, "::1")
    assert (config.sell.price, config.sell.open_credit) == (Price(10**6, 10**6, "uusd"), Amount(2 * 10**6, "uusd"))


@pytest.mark.parametrize("text", ["node = 3", "node = [1]", 'node = "x"'])
def test_a_section_that_is_no_table_is_a_bad_setting_also_under_the_command_line(write: Write, text: str) -> None:
    overrides: dict[str, dict[str, Any]] = {"node": {"port": 2}}

    with pytest.raises(BadConfig, match="node"):
        load_config(write(text), overrides)


@pytest.mark.parametrize("text", ["peers = 3", 'peers = "abc"', "peers = [3]"])
def test_bad_peers_in_the_file_are_not_passed_over_because_one_is_named_on_the_command_line(
    write: Write, text: str
) -> None:
    with pytest.raises(BadConfig, match="peers"):
        load_config(write(text), {}, (parse_peer(f"{DID}@http://x"),))


def test_a_peer_on_the_command_line_replaces_the_same_peer_of_the_file(write: Write) -> None:
    path = write(f'[[peers]]\ndid = "{DID}"\nurl = "http://old"\n[[peers]]\ndid = "{OTHER}"\nurl = "http://other"\n')

    config = load_config(path, {}, (parse_peer(f"{DID}@http://new"),))

    assert {(peer.did, peer.url) for peer in config.peers} == {(DID, "http://new"), (OTHER, "http://other")}


def test_a_peer_named_twice_is_a_mistake(write: Write) -> None:
    peer = f'[[peers]]\ndid = "{DID}"\nurl = "http://x"\n'

    with pytest.raises(BadConfig, match="a peer is named twice"):
        load_config(write(peer + peer), {})


@pytest.mark.parametrize("text", ["", DID, f"{DID}@", f"{DID}@192.0.2.7", "http://x", "alice@http://x"])
def test_a_peer_is_written_as_did_at_url(text: str) -> None:
    with pytest.raises(BadConfig):
        parse_peer(text)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, write: Write) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(BadConfig, match="is not TOML"):
        load_config(write("[node"), {})
    with pytest.raises(BadConfig, match="larger than"):
        load_config(write("#" * (MAX_CONFIG + 1)), {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfig, match="is not TOML"):
        load_config(binary, {})


def test_settings_do_not_change_once_read() -> None:
    config = load_config(None, {})

    with pytest.raises(ValueError, match="frozen"):
        config.node = config.node
    with pytest.raises(ValueError, match="frozen"):
        config.node.port = 1


@pytest.mark.parametrize(
    ("price", "credit"),
    [(Price(1, 1, "uusd"), Amount(10_000, "uusd")), (Price(1, 1, "msat"), Amount(10_000, "msat"))],
)
def test_the_default_credit_is_a_cent_or_ten_satoshis(price: Price, credit: Amount) -> None:
    assert default_credit(price) == credit
