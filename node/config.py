"""The owner's settings: one frozen object, read once from `config.toml` and the command line, and passed down."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ledger.identity import Did, parse_did
from ledger.money import Amount, Price, parse_amount, parse_price
from ledger.records import Privacy
from node.market.candidates import Limits, Route, Weights

DEFAULT_PORT: Final = 8080
MAX_CONFIG: Final = 2**20


T = TypeVar("T")


class BadConfig(ValueError):
    """Settings that cannot be used; the message names file, field and what to write."""


def _with(parse: Callable[[str], Any], kind: type = str) -> BeforeValidator:
    """Read what people write; also a number, so that the parser can say what it lacks."""
    return BeforeValidator(lambda value: value if isinstance(value, kind) and kind is not str else parse(str(value)))


_AmountText = Annotated[Amount, _with(parse_amount, Amount)]
_PriceText = Annotated[Price, _with(parse_price, Price)]
_DidText = Annotated[str, _with(parse_did)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NodeSettings(_Section):
    """Where the node listens, and what it runs."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    model: Path | None = None
    context: Annotated[int, Field(ge=64, le=2**20)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpu_layers: Annotated[int, Field(ge=-1, le=10_000)] = 0


class ApiSettings(_Section):
    """What requests get that do not say."""

    privacy: Privacy = "internal"
    route: Route = "auto"
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] = 512


class SellSettings(_Section):
    """What is sold: the price of a million tokens, and the trust in buyers. Without a price nothing is sold."""

    price: _PriceText | None = None
    open_credit: _AmountText | None = None  # None: enough for a demo, in the price's unit
    window: _AmountText | None = None  # None: a fifth of the open credit
    exposure: _AmountText | None = None  # None: five windows


_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class WeightSettings(_Section):
    """How much each part of a candidate's score counts; see `market.candidates.Weights`."""

    quality: _Weight = Weights().quality
    cost: _Weight = Weights().cost
    latency: _Weight = Weights().latency
    sovereignty: _Weight = Weights().sovereignty
    privacy: _Weight = Weights().privacy
    reputation: _Weight = Weights().reputation


class BuySettings(_Section):
    """Hard limits on buying, and the weights of the choice."""

    max_input_price: _AmountText | None = None
    max_output_price: _AmountText | None = None
    max_order_cost: _AmountText | None = None
    max_per_day: _AmountText | None = None
    min_reputation: Annotated[float, Field(ge=0, le=1)] = 0.0
    allowed_peers: tuple[_DidText, ...] | None = None
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


class AuditSettings(_Section):
    """How often bought answers are replayed."""

    rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    first: Annotated[int, Field(ge=0, le=1_000_000)] = 8


class PeerSettings(_Section):
    """A named peer: its identity, and where it can be reached now."""

    did: _DidText
    url: Annotated[str, Field(pattern=r"^https?://[^\s@/]+/?$", max_length=256)]


class Config(_Section):
    """All settings."""

    node: NodeSettings = NodeSettings()
    api: ApiSettings = ApiSettings()
    sell: SellSettings = SellSettings()
    buy: BuySettings = BuySettings()
    audit: AuditSettings = AuditSettings()
    peers: tuple[PeerSettings, ...] = ()
    catalogue: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        price = self.sell.price
        if price is None:
            return self
        for name in ("open_credit", "window", "exposure"):
            amount: Amount | None = getattr(self.sell, name)
            if amount is not None and amount.unit != price.unit:
                raise ValueError(f"sell.{name} is in {amount.unit}, and the price in {price.unit}: use one unit")
        return self

    @model_validator(mode="after")
    def _peers_once(self) -> Self:
        dids = [peer.did for peer in self.peers]
        if len(dids) != len(set(dids)):
            raise ValueError("a peer is named twice")
        return self


def parse_peer(text: str) -> PeerSettings:
    """Read `DID@URL`. Raises BadConfig."""
    did, at, url = text.partition("@")
    if not at:
        raise BadConfig(f"{text[:80]!r} names no peer: write DID@URL, as did:key:z6Mk…@http://192.168.1.20:8080")
    return _checked(lambda: PeerSettings(did=did, url=url), "--peer")


def load_config(
    path: Path | None, overrides: dict[str, dict[str, Any]], peers: tuple[PeerSettings, ...] = ()
) -> Config:
    """Read a file (none: all defaults), lay the command line over it, and check the whole. Raises BadConfig."""
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
    return _checked(lambda: Config.model_validate(settings), str(path or "the command line"))


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


def _checked(build: Callable[[], T], where: str) -> T:
    try:
        return build()
    except ValidationError as error:
        reasons = []
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            place = ".".join(str(part) for part in one["loc"])
            said = one["msg"].removeprefix("Value error, ")
            reasons.append(f"{place}: {said}" if place else said)
        raise BadConfig(f"{where}: {'; '.join(reasons)}") from None


def default_credit(price: Price) -> Amount:
    """Enough for a demo and no more: a cent, or ten satoshis."""
    return Amount(10_000, "uusd") if price.unit == "uusd" else Amount(10_000, "msat")


def did_of(peer: PeerSettings) -> Did:
    """A named peer's identity."""
    return Did(peer.did)
