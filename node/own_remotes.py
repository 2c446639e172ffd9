"""The owner's remote backends: their keys found, their models named as far as a file tells, ready to be asked."""

import asyncio
import os
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final

import aiohttp
from attrs import frozen

from ledger.money import Price
from node.config import BadConfig, Config, RemoteSettings
from node.engine.completions import CompletionsClient, Endpoint
from node.engine.paying import Payer
from node.engine.remote import RemoteChat, RemoteEngine
from node.exchange.sale import Elsewhere, Ware
from node.gateway.remotes import Backend, Tokens
from node.gateway.supply import quality
from node.home import Home
from node.models.gguf import BadModelFile, read_gguf
from node.models.known import KnownModels
from node.models.manifest import Manifest
from node.models.merkle import File
from node.models.spelling import Spelling
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from verify.attestation import UNDECLARED

_MAX_KEY: Final = 4_096
# Who pays a remote for each request.
PayerOf = Callable[[RemoteSettings], Payer]


def no_payer(settings: RemoteSettings) -> Payer:
    """Of a node without a wallet; the settings do not let it come to this. Raises BadConfig."""
    raise BadConfig(f"the remote {settings.name} is paid by x402, and there is no wallet: write a section [stablecoin]")


@frozen
class OwnRemote:
    """One remote backend; `ware` None where it is not sold."""

    backend: Backend
    ware: Ware | None

    async def close(self) -> None:
        """End what it is doing; again does nothing."""
        if isinstance(self.backend.speaks, Tokens):
            await self.backend.speaks.engine.close()


async def open_remotes(
    config: Config,
    home: Home,
    session: aiohttp.ClientSession,
    tokenizers: Tokenizers,
    names: Collection[str],
    sold: Collection[bytes],
    payer_of: PayerOf = no_payer,
) -> tuple[OwnRemote, ...]:
    """All of them; nobody is asked anything yet. `names` are those of the models that run here, `sold` those
    of them that are sold.

    Raises BadConfig, BadModelFile.
    """
    opened: list[OwnRemote] = []
    for settings in config.remotes:
        if settings.name in names:
            raise BadConfig(f"the remote {settings.name} has the name of a model that runs here: name it otherwise")
        payer = payer_of(settings) if settings.pay is not None else None
        remote = await _open(settings, config, home, session, tokenizers, payer)
        taken = {*sold, *(one.backend.model for one in opened if one.ware)}
        if remote.ware is not None and remote.backend.model in taken:
            raise BadConfig(f"the remote {settings.name} is of a model that is sold already: sell it in one place")
        opened.append(remote)
    return tuple(opened)


async def _open(
    settings: RemoteSettings,
    config: Config,
    home: Home,
    session: aiohttp.ClientSession,
    tokenizers: Tokenizers,
    payer: Payer | None,
) -> OwnRemote:
    terms = settings.terms(config.node.jurisdiction)
    if settings.tokenizer is None:
        chat = RemoteChat(_client(settings, session, payer), _slots(settings))
        model = sha256(b"remote:" + settings.name.encode()).digest()
        return OwnRemote(Backend(terms, model, settings.quality, settings.context, chat, payer), None)
    manifest, whole = await _manifest(settings, home, tokenizers)
    tokenizer = tokenizers.open_own(manifest.tokenizer)
    engine = remote_engine(settings, session, tokenizer, manifest, payer)
    good = quality(manifest.parameters, manifest.quantization) if whole else settings.quality
    backend = Backend(terms, manifest.digest, good, engine.context, Tokens(engine, tokenizer), payer)
    price = config.sell.price if settings.sell else None
    if price is not None and not whole:
        raise BadConfig(
            f"the remote {settings.name} is to be sold, and {settings.tokenizer} has no weights, which name the model: "
            "name the model's whole file"
        )
    return OwnRemote(backend, _ware(settings, engine, backend, price))


def remote_engine(
    settings: RemoteSettings,
    session: aiohttp.ClientSession,
    tokenizer: Tokenizer,
    manifest: Manifest,
    payer: Payer | None = None,
) -> RemoteEngine:
    """A server that runs the model of this manifest, which has this tokenizer. Raises BadConfig."""
    return RemoteEngine(
        _client(settings, session, payer),
        Spelling(tokenizer.words),
        manifest,
        context=min(settings.context, manifest.context),
        slots=_slots(settings),
        own_hardware=settings.hardware == "own",
        sends_ids=settings.prompts == "ids",
        server=settings.server or UNDECLARED,
    )


def _client(settings: RemoteSettings, session: aiohttp.ClientSession, payer: Payer | None) -> CompletionsClient:
    endpoint = Endpoint(settings.name, settings.url.rstrip("/"), settings.model, key_of(settings))
    return CompletionsClient(session, endpoint, payer=payer)


def _slots(settings: RemoteSettings) -> int:
    """What is paid by request is asked for one answer at a time: a channel's vouchers follow each other."""
    return settings.slots if settings.pay is None else 1


def _ware(settings: RemoteSettings, engine: RemoteEngine, backend: Backend, price: Price | None) -> Ware | None:
    if price is None or backend.tokenizer is None:
        return None
    own = settings.hardware == "own"
    elsewhere = Elsewhere(
        settings.privacy,
        None if own else settings.jurisdiction,
        None if own else settings.said_retention,
    )
    return Ware(engine, backend.tokenizer, settings.name, price, elsewhere=elsewhere)


async def _manifest(settings: RemoteSettings, home: Home, tokenizers: Tokenizers) -> tuple[Manifest, bool]:
    """What the file says of the model, and whether it is the whole model. Raises BadModelFile."""
    path = settings.tokenizer
    assert path is not None
    try:
        if read_gguf(path).tensors:
            known = KnownModels(home.models / "manifests.json")
            manifest = (await asyncio.to_thread(known.read, path, None)).manifest
            tokenizers.add_own(path)
            return manifest, True
        digest = tokenizers.add_own(path)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf file.") from None
    # No file tells which model it is: it has a name for this node alone, which gets into no record.
    stands_for = sha256(b"remote:" + settings.name.encode()).digest()
    return Manifest("remote", "unknown", 1, "", settings.context, (File(1, stands_for, stands_for),), digest), False


def key_of(settings: RemoteSettings) -> str | None:
    """The key, from where the settings say. Raises BadConfig, without a word of it."""
    where = f"remotes.{settings.name}"
    if settings.key_env is not None:
        key = os.environ.get(settings.key_env)
        if key is None:
            raise BadConfig(f"{where}: the environment has no {settings.key_env}: set it, or take key_env out")
        found = f"what the environment has as {settings.key_env}"
    elif settings.key_file is not None:
        try:
            with settings.key_file.open("rb") as file:
                key = file.read(_MAX_KEY + 1).decode("utf-8", "replace")
        except OSError as error:
            raise BadConfig(f"{where}: the key file {settings.key_file} cannot be read: {error.strerror}") from None
        found = f"what is in {settings.key_file}"
    else:
        return None
    key = key.strip()
    if not 0 < len(key) <= _MAX_KEY or not key.isascii() or not key.isprintable():
        raise BadConfig(f"{where}: {found} is no key: it should be one line of plain characters")
    return key
