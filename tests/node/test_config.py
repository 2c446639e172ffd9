from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.identity import Identity
from ledger.money import Amount, Price
from node.config import MAX_CONFIG, BadConfig, Config, default_credit, did_of, load_config, parse_peer
from node.market.candidates import Weights
from node.market.idle import IdleRule, parse_schedule

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


def test_a_node_sells_by_the_idle_rule_unless_its_owner_says_otherwise() -> None:
    assert load_config(None, {}).idle.rule() == IdleRule()
    assert load_config(None, {"idle": {"enabled": False}}).idle.rule() is None


def test_every_setting_can_be_written(write: Write) -> None:
    config = load_config(
        write(
            f"""
            [node]
            host = "0.0.0.0"
            port = 9000
            trusted_proxies = ["127.0.0.1", "fd00::/8"]
            memory = "12GiB"
            slots = 8
            context = 4096
            threads = 2
            batch = 512
            kv = "q8_0"
            gpu_layers = -1
            [[models]]
            path = "~/models/m.gguf"
            name = "my-model"
            context = 2048
            [[models]]
            path = "/models/n.gguf"
            price = "1usd:2usd"
            [[models]]
            path = "/models/o.gguf"
            sell = false
            [api]
            privacy = "public"
            route = "peers"
            max_tokens = 100
            [sell]
            price = "0.05usd:0.15usd"
            open_credit = "1usd"
            window = "0.1usd"
            exposure = "0.5usd"
            [idle]
            max_cpu = 0.2
            max_gpu = 0.1
            on_battery = true
            schedule = "mon-fri 18:00-08:00, sat-sun"
            calm = 300
            grace = 10
            [buy]
            max_input_price = "1usd"
            max_output_price = "2usd"
            max_order_cost = "0.01usd"
            max_per_day = "3usd"
            min_reputation = 0.3
            allowed_peers = ["{DID}"]
            rails = ["credit"]
            busy_wait = 0
            patience = 30
            [buy.weights]
            cost = 3.0
            reputation = 0
            [retention]
            token_ids = 30
            records = 400
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

    assert (config.retention.token_ids_s, config.retention.records) == (30 * 86_400, 400)
    assert (config.node.memory, config.node.slots, config.node.kv) == (12 * 2**30, 8, "q8_0")
    assert [model.path for model in config.own_models] == [
        Path("~/models/m.gguf").expanduser(),
        Path("/models/n.gguf"),
        Path("/models/o.gguf"),
    ]
    assert (config.models[0].name, config.models[0].context) == ("my-model", 2048)
    assert [config.price_of(model) for model in config.models] == [
        Price(50_000, 150_000, "uusd"),
        Price(1_000_000, 2_000_000, "uusd"),
        None,
    ]
    assert len(config.prices) == 2
    limits = config.buy.limits()
    assert (limits.max_per_day, limits.min_reputation) == (Amount(3_000_000, "uusd"), 0.3)
    assert limits.allowed == frozenset({DID})
    assert config.buy.rails == ("credit",)
    assert config.buy.weights == Weights(cost=3.0, reputation=0.0)
    assert [did_of(peer) for peer in config.peers] == [DID]
    schedule = parse_schedule("mon-fri 18:00-08:00, sat-sun")
    assert config.idle.rule() == IdleRule(0.2, 0.1, True, schedule, calm_s=300, grace_s=10)
    assert config.catalogue == {"big-one": "ab" * 32}


REMOTE = """
[[remotes]]
name = "cloud"
url = "https://cloud.example/v1"
model = "big"
tokenizer = "big.gguf"
price = "1usd:2usd"
"""


def test_a_remote_is_not_sold_for_less_than_it_costs(write: Write) -> None:
    text = REMOTE + "sell = true\n[sell]\nprice = "
    assert load_config(write(text + '"1usd:2usd"'), {}).remotes[0].sell
    with pytest.raises(BadConfig, match="cloud costs more than it would be sold for"):
        load_config(write(text + '"1usd:1.9usd"'), {})


def test_a_remote_is_not_sold_without_a_price(write: Write) -> None:
    with pytest.raises(BadConfig, match="there is no price"):
        load_config(write(REMOTE + "sell = true"), {})


def test_remotes_have_names_of_their_own(write: Write) -> None:
    with pytest.raises(BadConfig, match="two remotes have the same name"):
        load_config(write(REMOTE + REMOTE), {})


def test_a_remote_is_the_worst_that_it_can_be_unless_its_owner_says_more(write: Write) -> None:
    (remote,) = load_config(
        write('[[remotes]]\nname = "cloud"\nurl = "https://cloud.example/v1"\nmodel = "big"'), {}
    ).remotes

    terms = remote.terms("DE")
    assert (terms.ceiling, terms.sovereignty, terms.price) == ("public", 0.1, Price(0, 0, "uusd"))
    assert (remote.sell, remote.said_retention) == (False, None)


def test_everything_can_be_said_of_a_remote(write: Write) -> None:
    config = load_config(
        write(
            """
            [node]
            jurisdiction = "DE"
            [sell]
            price = "2usd:3usd"
            [[remotes]]
            name = "cloud"
            url = "https://cloud.example/v1/"
            model = "big/model"
            key_env = "CLOUD_KEY"
            price = "1usd:2usd"
            hardware = "rented"
            jurisdiction = "DE"
            retention = 30
            privacy = "internal"
            tokenizer = "~/models/big.gguf"
            context = 8192
            slots = 2
            sell = true
            [[remotes]]
            name = "near"
            url = "http://127.0.0.1:8081/v1"
            model = "small"
            jurisdiction = "DE"
            retention = "none"
            quality = 0.2
            """
        ),
        {},
    )

    cloud, near = config.remotes
    assert cloud.said_retention == "30 days"
    assert cloud.terms("DE").sovereignty == 0.8
    assert (near.said_retention, near.terms("DE").sovereignty, near.terms("FR").sovereignty) == ("none", 0.4, 0.2)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[node]\nport = 65536", "node.port"),
        ("[node]\nport = -1", "node.port"),
        ('[node]\nport = "http"', "node.port"),
        ("[node]\ncontext = 3", "node.context"),
        ("[node]\nthreads = 0", "node.threads"),
        ("[node]\nslots = 0", "node.slots"),
        ("[node]\nbatch = 1", "node.batch"),
        ('[node]\nkv = "q4_0"', "node.kv"),
        ("[node]\nmemory = 5", "node.memory"),
        ('[node]\nmemory = "much"', "node.memory"),
        ('[node]\nmemory = "1KB"', "node.memory"),
        ('[node]\nmodel = "m.gguf"', "node: model"),
        ("[[models]]\nname = 'x'", "models[1].path"),
        ('[[models]]\npath = "x"\nname = "a name"', "models[1].name"),
        ('[[models]]\npath = "x"\nprice = "5"', "models[1].price"),
        ('[[models]]\npath = "x"\n[[models]]\npath = "x"', "the same path"),
        ('[[models]]\npath = "x"\nname = "a"\n[[models]]\npath = "y"\nname = "a"', "the same name"),
        ('[sell]\nprice = "1usd:1usd"\n[[models]]\npath = "x"\n[[models]]\npath = "y"\nprice = "1sat:1sat"', "one"),
        ('[sell]\nopen_credit = "1usd"', "sell.open_credit"),
        ('[sell]\nprice = "1usd:1usd"\nexposure = "1usd"\n[[models]]\npath = "x"\nsell = false', "sell.exposure"),
        ('[api]\nprivacy = "secret"', "api.privacy"),
        ('[api]\nroute = "anywhere"', "api.route"),
        ("[api]\nmax_tokens = 0", "api.max_tokens"),
        ('[sell]\nprice = "5"', "sell.price"),
        (
            "[[remotes]]\nname = 'a'\nmodel = 'm'\nurl = 'https://a/v1'\nretention = 'some'",
            "remotes[1].retention: write 'none', or a whole number",
        ),
        ("[sell]\nprice = 5", "sell.price"),
        ('[sell]\nprice = "1usd:1msat"', "sell.price"),
        ('[sell]\nprice = "1usd:1usd"\nwindow = "5msat"', "sell.window"),
        ('[sell]\nopen_credit = "-1usd"', "sell.open_credit"),
        ('[buy]\nmax_order_cost = "1"', "buy.max_order_cost"),
        ("[buy]\nmax_order_cost = 1", "buy.max_order_cost"),
        ("[buy]\nmin_reputation = 1.1", "buy.min_reputation"),
        ("[buy]\nmin_reputation = nan", "buy.min_reputation"),
        ('[buy]\nallowed_peers = ["me"]', "buy.allowed_peers[1]"),
        ("[buy]\nbusy_wait = -1", "buy.busy_wait"),
        ("[idle]\nmax_cpu = 50", "idle.max_cpu"),
        ("[idle]\ncalm = -1", "idle.calm"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "ftp://a/v1"', "remotes[1].url"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://user:key@a/v1"', "remotes[1].url"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1?key=1"', "remotes[1].url"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1"\nkey = "sk-1"', "remotes[1].key"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1"\nprivacy = "restricted"', "remotes[1].privacy"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1"\nretention = "some"', "remotes[1].retention"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1"\nsell = true', "tokenizer"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "https://a/v1"\nkey_env = "A"\nkey_file = "b"', "one place"),
        ('[[remotes]]\nname = "a"\nmodel = "m"\nurl = "http://a.example/v1"\nkey_env = "A"', "use https"),
        ('[idle]\nschedule = "at night"', "idle.schedule"),
        ("[buy]\npatience = 0", "buy.patience"),
        ("[buy.weights]\ncost = -1", "buy.weights.cost"),
        ("[buy.weights]\ncost = inf", "buy.weights.cost"),
        ("[buy.weights]\nbeauty = 1", "buy.weights.beauty"),
        ("[audit]\nrate = 2", "audit.rate"),
        ("[retention]\ntoken_ids = 0", "retention.token_ids"),
        ("[retention]\nrecords = 6", "retention.records"),
        ("[audit]\nfirst = -1", "audit.first"),
        (f'[[peers]]\ndid = "{DID}"', "peers[1].url"),
        (f'[[peers]]\ndid = "{DID}"\nurl = "ftp://x"', "peers[1].url"),
        (f'[[peers]]\ndid = "{DID}"\nurl = "http://user@x"', "peers[1].url"),
        ('[[peers]]\ndid = "did:key:z6Mk"\nurl = "http://x"', "peers[1].did"),
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
        ('[buy]\nallowed_peers = ["me"]', "it is did:key:z6Mk and 44 more characters"),
        ('[node]\nmodel = "m.gguf"', "write [[models]] and path ="),
        ('[node]\nmemory = "all"', "write memory as 12GiB or 900MB"),
        ('[sell]\nwindow = "1usd"', "nothing is sold: name a price with --sell"),
        (f'[[peers]]\ndid = "{DID}"\nurl = "http://x/v1"', "as http://192.168.1.20:8080"),
    ],
)
def test_a_bad_setting_comes_with_what_to_write(write: Write, text: str, advice: str) -> None:
    with pytest.raises(BadConfig) as error:
        load_config(write(text), {})

    assert advice in str(error.value)


def test_the_ledger_is_in_the_home_folder_or_in_a_database(write: Write, tmp_path: Path) -> None:
    url = "postgresql+asyncpg://me:geheim@db.example/idlemesh"
    file = tmp_path / "ledger.db"

    assert Config().ledger.place(file) == file
    config = load_config(write(f'[ledger]\nurl = "{url}"'), {})
    assert config.ledger.place(file) == url
    assert "geheim" not in repr(config)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:geheim@x/y",
        "me:geheim@x",
        "postgresql+asyncpg://me:geheim@x",
        "postgresql+asyncpg://me:geheim@x:p/y",
    ],
)
def test_a_bad_place_of_the_ledger_is_told_without_the_password(write: Write, url: str) -> None:
    with pytest.raises(BadConfig, match=r"ledger\.url: name a database of PostgreSQL") as error:
        load_config(write(f'[ledger]\nurl = "{url}"'), {})

    assert "geheim" not in str(error.value)


def test_all_bad_settings_are_named_at_once(write: Write) -> None:
    with pytest.raises(BadConfig) as error:
        load_config(write("[node]\nport = -1\n[audit]\nrate = 7"), {})

    assert "node.port" in str(error.value)
    assert "audit.rate" in str(error.value)


def test_the_command_line_wins_over_the_file_and_leaves_the_rest(write: Write) -> None:
    path = write('[node]\nport = 1\nhost = "::1"\n[sell]\nprice = "1usd:1usd"')

    config = load_config(path, {"node": {"port": 2, "host": None}, "sell": {"open_credit": "2usd"}})
    assert config.models == ()

    assert (config.node.port, config.node.host) == (2, "::1")
    assert (config.sell.price, config.sell.open_credit) == (Price(10**6, 10**6, "uusd"), Amount(2 * 10**6, "uusd"))


@pytest.mark.parametrize("text", ["node = 3", "node = [1]", 'node = "x"'])
def test_a_section_that_is_no_table_is_a_bad_setting_also_under_the_command_line(write: Write, text: str) -> None:
    overrides: dict[str, dict[str, Any]] = {"node": {"port": 2}}

    with pytest.raises(BadConfig, match="node"):
        load_config(write(text), overrides)


def test_models_on_the_command_line_are_those_that_run_with_what_the_file_says_of_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(
        f'[[models]]\npath = "{tmp_path}/a.gguf"\nname = "first"\nprice = "1usd:1usd"\n'
        '[[models]]\npath = "/other/b.gguf"\n'
    )

    config = load_config(path, {}, (), [Path("c.gguf"), Path("a.gguf")])

    assert [(model.path.name, model.name) for model in config.models] == [("c.gguf", None), ("a.gguf", "first")]
    assert config.prices == (Price(10**6, 10**6, "uusd"),)


@pytest.mark.parametrize("text", ["models = 3", "models = [3]", "[models]"])
def test_bad_models_in_the_file_are_named(write: Write, text: str) -> None:
    with pytest.raises(BadConfig, match="models"):
        load_config(write(text), {})


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("900MB", 900_000_000), ("1.5 gib", 3 * 2**29), ("2TB", 2 * 10**12), ("1024KiB", 2**20)],
)
def test_memory_is_written_with_its_unit(write: Write, text: str, size: int) -> None:
    assert load_config(write(f'[node]\nmemory = "{text}"'), {}).node.memory == size


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


@pytest.mark.parametrize(
    "text", ["", DID, f"{DID}@", f"{DID}@192.0.2.7", f"{DID}@http://x/v1", "http://x", "alice@http://x"]
)
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


CHAIN = """
[stablecoin]
network = "base-sepolia"
rpc = ["https://rpc.example/v2/secret-key"]
keystore = "~/keys/wallet.json"
passphrase_file = "~/keys/passphrase"
ether = "2500usd"
max_gas_price = 5
max_fee_share = 0.01
claim_at = "2usd"
claim_after = 3600
confirmations = 3
withdraw_delay = 900
min_deposit = "0.5usd"
deposit = "1usd"
top_up_below = "0.2usd"
"""


def test_a_mistyped_address_is_told_at_the_start(write: Write) -> None:
    right = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    section = '[buy]\narbiters = ["{}"]\n'
    assert load_config(write(section.format(right)), {}).buy.arbiters == (right,)
    with pytest.raises(BadConfig, match=r"buy\.arbiters.*: the checksum of 0x5AAeb.* a digit was mistyped"):
        load_config(write(section.format(right.replace("5aA", "5AA"))), {})


def test_money_on_a_chain_is_off_until_its_section_is_written(write: Write) -> None:
    assert load_config(None, {}).stablecoin is None
    chain = load_config(write(CHAIN), {}).stablecoin
    assert chain is not None
    assert (chain.ether, chain.claim_at) == (Amount(2_500_000_000, "uusd"), Amount(2_000_000, "uusd"))
    assert chain.keystore == Path("~/keys/wallet.json").expanduser()
    assert "secret-key" not in repr(chain)
    policy = chain.policy()
    assert (policy.move_at, policy.top_up_below, policy.top_up_to) == (2_000_000, 200_000, 1_000_000)
    assert policy.max_fee_ppm == 10_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[stablecoin]\nrpc = ['ftp://secret.example']", "JSON-RPC endpoint"),
        ("[stablecoin]\ndeposit = '12sat'", "counts in usd"),
        ("[stablecoin]\nwithdraw_delay = 60", "withdraw_delay"),
        ("[stablecoin]\nsigner = ['sign']\nkeystore = 'k.json'", "name one of the two"),
        ("[stablecoin]\ntop_up_below = '1usd'", "raise deposit"),
        (f"[stablecoin]\ncollector = '0x{'1' * 40}'", "write that as contract"),
        ("[paid]\nprice = '1usd:1usd'", r"write a section \[stablecoin\]"),
        ("[stablecoin]\n[paid]", "there is no price"),
        ("[stablecoin]\n[paid]\nprice = '1usd:1usd'\nmax_prepaid = '0.09usd'", "max_prepaid is below prepaid"),
        ("[stablecoin]\n[paid]\nprice = '1sat:1sat'", "paid in dollars"),
        (REMOTE.replace("https", "http") + 'pay = "x402"', "use https"),
        (REMOTE + 'pay = "x402"\nmax_payment = "1usd"', "the remote cloud is paid by x402, and there is no wallet"),
        (REMOTE.replace("price", "#") + 'pay = "x402"', "say how much may be paid"),
        (REMOTE.replace("price", "#") + 'pay = "x402"\nprice = "1sat:1sat"', "write the price in usd"),
        (REMOTE + f"pay_to = '0x{'1' * 40}'", 'write pay = "x402"'),
        (REMOTE + "max_per_day = '1usd'", 'write pay = "x402"'),
    ],
)
def test_settings_of_money_on_a_chain_that_make_no_sense_say_what_to_write(write: Write, text: str, why: str) -> None:
    with pytest.raises(BadConfig, match=why) as error:
        load_config(write(text), {})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_not_everybody_can_be_a_trusted_proxy(write: Write, everybody: str) -> None:
    with pytest.raises(BadConfig, match="these are all addresses"):
        load_config(write(f"[node]\ntrusted_proxies = ['{everybody}']"), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[node]\nport = 'x'", "node.port: write a whole number"),
        ("[node]\nport = 99999", "node.port: write 65535 or less"),
        ("[node]\nprot = 1", "node.prot: there is no such setting; did you mean port?"),
        ("[nodes]\nport = 1", "nodes: there is no such setting; did you mean node?"),
        ("[api]\nzzz = 1", "api.zzz: there is no such setting; known are privacy, route, max_tokens"),
        ("[api]\nprivacy = 'x'", "api.privacy: write 'public', 'internal', 'confidential' or 'restricted'"),
        ("[node]\njurisdiction = 'de'", "node.jurisdiction: write a country in capitals, as DE, or EU"),
        (
            "[node]\ntrusted_proxies = ['localhost']",
            "node.trusted_proxies[1]: 'localhost' is no address or network: write 127.0.0.1, or 10.0.0.0/8",
        ),
        ("[idle]\nenabled = 'maybe'", "idle.enabled: write true or false"),
        ("[[models]]\npath = 'a'\n[[models]]\nname = 'b'", "models[2].path: is missing"),
        ("node = 3", "node: is a section: write [node], and its settings below"),
        ("[stablecoin]\ncontract = '0x1'", "stablecoin.contract: write an address: 0x and 40 hexadecimal digits"),
        ("[stablecoin]\nrpc = [1]", "stablecoin.rpc[1]: write a text, in quotes"),
        ("[stablecoin]\nsigner = []", "stablecoin.signer: name at least 1"),
        (
            "[[remotes]]\nname = 'a'\nmodel = 'm'\nurl = 'https://a/v1'\nretention = 'some'",
            "remotes[1].retention: write 'none', or a whole number",
        ),
        ("[sell]\nprice = 5", "sell.price: '5' is not a price: write IN:OUT for a million tokens, as 0.05usd:0.15usd"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(text: str, said: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(BadConfig) as error:
        load_config(path, {})
    assert str(error.value) == f"{path}: {said}"
