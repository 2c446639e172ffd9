"""The owner's settings: one frozen object, read once from `config.toml` and the command line, and passed down."""

import re
import tomllib
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from ledger.database import Place, check_place
from ledger.identity import Did
from ledger.money import Amount, Price
from ledger.records import Privacy
from node.exchange.seller import PATIENCE_S
from node.market.candidates import Hardware, Limits, Remote, Route, Weights
from node.market.idle import IdleRule, Window, parse_schedule
from node.models.weights import KvType
from node.settings import MAX_URL, AmountText, DidText, PriceText, Section, Share, complaints, read_with
from node.stablecoin_settings import AddressText, Bytes32Text, DollarText, PaidSettings, Scheme, StablecoinSettings
from node.wire.client import LEAST_PATIENCE_S
from verify.attestation import UNDECLARED

DEFAULT_PORT: Final = 8080
MAX_CONFIG: Final = 2**20
# The model that comes with idlemesh.
DEMO_MODEL: Final = Path(__file__).parent / "models" / "demo" / "demo-Q8_0.gguf"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PEER_URL: Final = re.compile(r"https?://[^\s@/]+/?")
_MEMORY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?([KMGT]i?B)", re.IGNORECASE)
_MEMORY_UNITS: Final = {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgt", 1)
    for binary in ("", "i")
}


T = TypeVar("T")


class BadConfig(ValueError):
    """Settings that cannot be used; the message names file, field and what to write."""


def _parse_memory(text: str) -> int:
    """Read bytes as people write them: 12GiB, 900MB."""
    found = _MEMORY.fullmatch(text.strip())
    if found is None:
        raise ValueError("write memory as 12GiB or 900MB")
    return int(float(found[1]) * _MEMORY_UNITS[found[2].lower()])


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read an address, or a network of them, that proxies have."""
    try:
        network = ip_network(text.strip())
    except ValueError:
        raise ValueError(f"{text[:64]!r} is no address or network: write 127.0.0.1, or 10.0.0.0/8") from None
    if not network.prefixlen:
        raise ValueError("these are all addresses: anybody could say in whose name it asks; write the proxies' own")
    return network


_Context = Annotated[int, Field(ge=64, le=2**20)]
_Network = Annotated[IPv4Network | IPv6Network, read_with(_parse_network)]
_MemoryText = Annotated[int, read_with(_parse_memory), Field(ge=2**20, le=2**50)]


_Jurisdiction = Annotated[str, Field(pattern=r"^[A-Z]{2,3}$")]  # a country as ISO 3166 has it, or EU


class NodeSettings(Section):
    """Where the node listens, and how it runs its models; what is None follows from the machine."""

    host: str = "127.0.0.1"
    trusted_proxies: Annotated[tuple[_Network, ...], Field(max_length=64)] = ()  # believed for whom they ask
    jurisdiction: _Jurisdiction | None = None  # the law that this node's owner is under
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    memory: _MemoryText | None = None  # bytes that all models together may take
    slots: Annotated[int, Field(ge=1, le=128)] | None = None  # jobs of one model at the same time
    context: _Context | None = None  # tokens for each of them
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    batch: Annotated[int, Field(ge=16, le=8_192)] | None = None  # tokens computed at once
    kv: KvType | None = None
    gpu_layers: Annotated[int, Field(ge=-1, le=10_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _models_have_a_place(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model" in values:
            raise ValueError('model: models have sections of their own: write [[models]] and path = "model.gguf"')
        return values


def _ledger_url(url: SecretStr) -> SecretStr:
    check_place(url.get_secret_value())
    return url


class LedgerSettings(Section):
    """Where the ledger is. A database of PostgreSQL may be shared by several nodes, and by several processes of one.

    Its URL may hold a password.
    """

    url: Annotated[SecretStr, AfterValidator(_ledger_url)] | None = None  # None: a file in the home folder

    def place(self, file: Path) -> Place:
        """Where to open the ledger; `file` is the one in the home folder."""
        return file if self.url is None else self.url.get_secret_value()


class ModelSettings(Section):
    """One model: its file, what it is called here, and how it is sold."""

    path: Annotated[Path, AfterValidator(Path.expanduser)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,63}$")] | None = None  # None: the file's
    price: PriceText | None = None  # None: that of all models
    sell: bool = True
    context: _Context | None = None  # None: that of all models


class ApiSettings(Section):
    """What requests get that do not say."""

    privacy: Privacy = "internal"
    route: Route = "auto"
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] = 512


class SellSettings(Section):
    """What is sold: the price of a million tokens, and the trust in buyers. Without a price nothing is sold."""

    price: PriceText | None = None
    open_credit: AmountText | None = None  # None: enough for a demo, in the price's unit
    window: AmountText | None = None  # None: a fifth of the open credit
    exposure: AmountText | None = None  # None: five windows
    patience: Annotated[float, Field(ge=LEAST_PATIENCE_S, le=600)] = PATIENCE_S  # seconds without pay, in mid-answer
    bond: Bytes32Text | None = None  # a stake of this node's, by its id on the chain; offers name it


_Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class IdleSettings(Section):
    """When sold work may start: see `market.idle.IdleRule`. `schedule` as "mon-fri 18:00-08:00, sat-sun"."""

    enabled: bool = True
    max_cpu: Share = IdleRule().max_cpu
    max_gpu: Share = IdleRule().max_gpu
    on_battery: bool = IdleRule().on_battery
    schedule: Annotated[tuple[Window, ...], read_with(parse_schedule, tuple)] = ()
    calm: _Seconds = IdleRule().calm_s
    grace: _Seconds = IdleRule().grace_s

    def rule(self) -> IdleRule | None:
        """The rule as the market knows it; None if the node sells at any time."""
        if not self.enabled:
            return None
        return IdleRule(self.max_cpu, self.max_gpu, self.on_battery, self.schedule, self.calm, self.grace)


_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class WeightSettings(Section):
    """How much each part of a candidate's score counts; see `market.candidates.Weights`."""

    quality: _Weight = Weights().quality
    cost: _Weight = Weights().cost
    latency: _Weight = Weights().latency
    sovereignty: _Weight = Weights().sovereignty
    privacy: _Weight = Weights().privacy
    reputation: _Weight = Weights().reputation
    bond: _Weight = Weights().bond


class BuySettings(Section):
    """Hard limits on buying, and the weights of the choice."""

    max_input_price: AmountText | None = None
    max_output_price: AmountText | None = None
    max_order_cost: AmountText | None = None
    max_per_day: AmountText | None = None
    min_reputation: Annotated[float, Field(ge=0, le=1)] = 0.0
    allowed_peers: tuple[DidText, ...] | None = None
    arbiters: tuple[AddressText, ...] = ()  # trusted to judge sellers' bonds; other parts of a bond count for nothing
    # How sellers are paid, the preferred way first: a channel once there is money in it, else on credit.
    rails: Annotated[tuple[Literal["stablecoin", "credit"], ...], Field(min_length=1)] = ("stablecoin", "credit")
    busy_wait: Annotated[float, Field(ge=0, le=600)] = 2.0  # seconds
    patience: Annotated[float, Field(gt=0, le=600)] = 60.0  # seconds without a token
    weighing: WeightSettings = Field(default=WeightSettings(), alias="weights")

    @property
    def weights(self) -> Weights:
        """The weights of the choice as the market knows them."""
        return Weights(**self.weighing.model_dump())

    def limits(self) -> Limits:
        """The hard limits as the market knows them."""
        allowed = None if self.allowed_peers is None else frozenset(self.allowed_peers)
        return Limits(
            max_input_price=self.max_input_price,
            max_output_price=self.max_output_price,
            max_order_cost=self.max_order_cost,
            max_per_day=self.max_per_day,
            min_reputation=self.min_reputation,
            allowed=allowed,
        )


class AuditSettings(Section):
    """How often bought answers are checked, and what the help of other sellers in it may cost."""

    rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    first: Annotated[int, Field(ge=0, le=1_000_000)] = 8
    max_per_day: AmountText | None = None  # None: a cent, or ten satoshis


class RetentionSettings(Section):
    """For how many days something is kept; what it proves stays in the journal's chain, as a digest."""

    # Prompts and answers of bought orders, encrypted, for audits: without them nothing can be audited any more.
    token_ids: Annotated[int, Field(ge=1, le=3_650)] = 7
    records: Annotated[int, Field(ge=7, le=36_500)] | None = None  # of orders long closed; None: for ever

    @property
    def token_ids_s(self) -> int:
        """In seconds."""
        return self.token_ids * 86_400


def _peer_url(url: str) -> str:
    """An address without path, user or password."""
    if len(url) > MAX_URL or not _PEER_URL.fullmatch(url):
        raise ValueError("write where the peer listens and nothing after it, as http://192.168.1.20:8080")
    return url


class PeerSettings(Section):
    """A named peer: its identity, and where it can be reached now; one that runs in several processes has several."""

    did: DidText
    url: Annotated[str, AfterValidator(_peer_url)]


class RemoteSettings(Section):
    """An OpenAI-compatible server: where it is, what it is, and what the owner says of it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,63}$")]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$", max_length=MAX_URL)]  # as OpenAI's base_url: with /v1
    model: Annotated[str, Field(min_length=1, max_length=256)]  # as the server calls it
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")] | None = None
    key_file: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    price: PriceText = Price(0, 0, "uusd")  # what it costs the owner, for a million tokens
    hardware: Hardware = "cloud"
    jurisdiction: _Jurisdiction | None = None
    retention: Literal["none"] | Annotated[int, Field(ge=1, le=36_500)] | None = None  # days; None: not known
    privacy: Literal["public", "internal", "confidential"] = "public"  # the highest level that it may be shown
    tokenizer: Annotated[Path, AfterValidator(Path.expanduser)] | None = None  # a GGUF file of the very model
    prompts: Literal["text", "ids"] = "text"  # how prompts are sent where the tokenizer is here; ids are exact
    server: Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,62}[!-~])?$")] | None = None  # what it is, with its version
    context: _Context = 4_096
    slots: Annotated[int, Field(ge=1, le=256)] = 4
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5  # where no file of the model tells it
    sell: bool = False
    pay: Literal["x402"] | None = None  # how each request is paid; None: the owner has an account there
    max_payment: DollarText | None = None  # for one request; None: what its tokens may cost by `price`
    max_per_day: DollarText | None = None
    max_deposit: DollarText | None = None  # into a channel at a time; None: ten requests' worth
    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)] = ("batch-settlement", "exact")  # the first that fits
    pay_to: AddressText | None = None  # where its money goes; None: where it wants it the first time

    @property
    def said_retention(self) -> str | None:
        """How long it keeps prompts, in words."""
        return f"{self.retention} days" if isinstance(self.retention, int) else self.retention

    def terms(self, jurisdiction: str | None) -> Remote:
        """What the market knows of it; `jurisdiction` is the owner's."""
        same = self.jurisdiction is not None and self.jurisdiction == jurisdiction
        return Remote(self.name, self.price, self.hardware, same, self.retention != "none", self.privacy)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("name one place of the key: key_env or key_file")
        keyed = self.key_env is not None or self.key_file is not None
        there = urlsplit(self.url)
        if keyed and there.scheme == "http" and self.hardware == "cloud" and there.hostname not in _LOOPBACK:
            raise ValueError("the key would travel for all to read: use https")
        if self.pay and there.scheme == "http" and self.hardware == "cloud" and there.hostname not in _LOOPBACK:
            raise ValueError("where its money goes could be changed on the way: use https")
        if self.server == UNDECLARED:
            raise ValueError("say which server it is, as in server = 'llama-server b9960 f16', or nothing")
        of_pay = [self.max_payment, self.max_per_day, self.max_deposit, self.pay_to]
        if self.pay is None and any(limit is not None for limit in of_pay):
            raise ValueError(
                'max_payment, max_per_day, max_deposit and pay_to are of requests that are paid: write pay = "x402"'
            )
        if self.pay is not None and not self.price.output and self.max_payment is None:
            raise ValueError("say how much may be paid: write what a million tokens cost as price, or max_payment")
        if self.pay is not None and self.price.unit != "uusd":
            raise ValueError("x402 is paid in dollars: write the price in usd")
        if self.sell and self.tokenizer is None:
            raise ValueError("what is sold is counted and named by the model's own file: name it as tokenizer")
        return self


class Config(Section):
    """All settings."""

    node: NodeSettings = NodeSettings()
    ledger: LedgerSettings = LedgerSettings()
    api: ApiSettings = ApiSettings()
    models: tuple[ModelSettings, ...] = ()  # none: the one that comes with idlemesh
    sell: SellSettings = SellSettings()
    idle: IdleSettings = IdleSettings()
    buy: BuySettings = BuySettings()
    audit: AuditSettings = AuditSettings()
    retention: RetentionSettings = RetentionSettings()
    peers: tuple[PeerSettings, ...] = ()
    remotes: tuple[RemoteSettings, ...] = ()
    stablecoin: StablecoinSettings | None = None
    paid: PaidSettings | None = None
    catalogue: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)

    @property
    def own_models(self) -> tuple[ModelSettings, ...]:
        """The models that the node runs."""
        return self.models or (ModelSettings(path=DEMO_MODEL),)

    def price_of(self, model: ModelSettings) -> Price | None:
        """What a model is sold for; None if it is not."""
        return (model.price or self.sell.price) if model.sell else None

    @property
    def prices(self) -> tuple[Price, ...]:
        """What is sold for how much: nothing is, where there are none."""
        own = tuple(price for model in self.own_models if (price := self.price_of(model)) is not None)
        price = self.sell.price
        return (*own, price) if price is not None and any(remote.sell for remote in self.remotes) else own

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if not self.prices:
            return self._nobody_can_owe()
        price = self.prices[0]
        if any(other.unit != price.unit for other in self.prices):
            raise ValueError("the models' prices are in several units: use one")
        for name in ("open_credit", "window", "exposure"):
            amount: Amount | None = getattr(self.sell, name)
            if amount is not None and amount.unit != price.unit:
                raise ValueError(f"sell.{name} is in {amount.unit}, and the price in {price.unit}: use one unit")
        return self

    def _nobody_can_owe(self) -> Self:
        for name in ("open_credit", "window", "exposure"):
            if getattr(self.sell, name) is not None:
                raise ValueError(f"sell.{name} is what buyers may owe, and nothing is sold: name a price with --sell")
        return self

    @model_validator(mode="after")
    def _remotes_make_sense(self) -> Self:
        names = [remote.name for remote in self.remotes]
        if len(names) != len(set(names)):
            raise ValueError("two remotes have the same name")
        for remote in (remote for remote in self.remotes if remote.sell):
            sold = self.sell.price
            if sold is None:
                raise ValueError(f"the remote {remote.name} is to be sold, and there is no price: write it in [sell]")
            if remote.price.unit == sold.unit and (
                sold.input < remote.price.input or sold.output < remote.price.output
            ):
                raise ValueError(f"the remote {remote.name} costs more than it would be sold for")
        return self

    @model_validator(mode="after")
    def _chain_for_what_needs_it(self) -> Self:
        paying = [f"the remote {remote.name} is paid by x402" for remote in self.remotes if remote.pay == "x402"]
        needing = [*paying, *(["[paid] takes x402's payments"] if self.paid is not None else [])]
        if needing and self.stablecoin is None:
            raise ValueError(f"{needing[0]}, and there is no wallet: write a section [stablecoin]")
        if self.paid is not None:
            price = self.paid.price or self.sell.price
            if price is None:
                raise ValueError("[paid] sells, and there is no price: write it there, or in [sell]")
            if price.unit != "uusd":
                raise ValueError("x402 is paid in dollars: write a price in usd in [paid]")
        return self

    @model_validator(mode="after")
    def _models_once(self) -> Self:
        for what in ("path", "name"):
            given = [value for model in self.models if (value := getattr(model, what)) is not None]
            if len(given) != len(set(given)):
                raise ValueError(f"two models have the same {what}")
        return self

    @model_validator(mode="after")
    def _peers_once(self) -> Self:
        # Several processes of one peer are each named with their URL.
        if len(self.peers) != len({(peer.did, peer.url) for peer in self.peers}):
            raise ValueError("a peer is named twice with the same url")
        return self


def parse_peer(text: str) -> PeerSettings:
    """Read `DID@URL`. Raises BadConfig."""
    did, at, url = text.partition("@")
    if not at:
        raise BadConfig(f"{text[:80]!r} names no peer: write DID@URL, as did:key:z6Mk…@http://192.168.1.20:8080")
    return _checked(lambda: PeerSettings(did=did, url=url), "--peer", PeerSettings)


def load_config(
    path: Path | None,
    overrides: dict[str, dict[str, Any]],
    peers: tuple[PeerSettings, ...] = (),
    models: Sequence[Path] = (),
) -> Config:
    """Read a file (none: all defaults), lay the command line over it, and check the whole. Raises BadConfig.

    `models` are the ones to run, instead of the file's; what the file says of one of them still holds.
    """
    settings = _read(path) if path is not None else {}
    for section, values in overrides.items():
        given = {name: value for name, value in values.items() if value is not None}
        standing = settings.get(section, {})
        # What is no table at all is left for the check to complain about.
        if given and isinstance(standing, dict):
            settings[section] = {**standing, **given}
    standing_peers = settings.get("peers", [])
    if peers and isinstance(standing_peers, list):
        named = {peer.did for peer in peers}
        kept = [peer for peer in standing_peers if not (isinstance(peer, dict) and peer.get("did") in named)]
        settings["peers"] = [*kept, *(peer.model_dump() for peer in peers)]
    standing_models = settings.get("models", [])
    if models and isinstance(standing_models, list):
        said = {_place(model.get("path")): model for model in standing_models if isinstance(model, dict)}
        settings["models"] = [{**said.get(_place(model), {}), "path": model} for model in models]
    return _checked(lambda: Config.model_validate(settings), str(path or "the command line"), Config)


def _place(path: object) -> Path:
    """Where a model's file is, however it is written."""
    return Path(str(path)).expanduser().absolute()


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_CONFIG:
        raise BadConfig(f"{path} is larger than {MAX_CONFIG} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from None


def _checked(build: Callable[[], T], where: str, model: type[BaseModel]) -> T:
    try:
        return build()
    except ValidationError as error:
        raise BadConfig(f"{where}: {'; '.join(complaints(error, model))}") from None


def default_credit(price: Price) -> Amount:
    """Enough for a demo and no more: a cent, or ten satoshis."""
    return Amount(10_000, "uusd") if price.unit == "uusd" else Amount(10_000, "msat")


def did_of(peer: PeerSettings) -> Did:
    """A named peer's identity."""
    return Did(peer.did)
