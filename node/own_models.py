"""The owner's models: read from disk, named, planned for this machine, and put where they are loaded when used."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from ledger.money import Price
from ledger.records import Fingerprint
from node.config import BadConfig, Config, ModelSettings
from node.engine.hardware import Machine, Plan, Wishes, default_memory, plan, read_machine, used_memory
from node.engine.pool import Pool, PooledEngine
from node.engine.port import Engine
from node.engine.stock import LoadFailed, Stock
from node.home import Home
from node.models.catalogue import Catalogue
from node.models.footprint import Footprint, footprint_of
from node.models.gguf import BadModelFile
from node.models.grammar import GRAMMAR
from node.models.known import KnownModel, KnownModels
from node.models.llama import backend, build
from node.models.manifest import Manifest
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from verify.sampler import SAMPLER

LoadEngine = Callable[[Path, Manifest, Plan], Awaitable[Engine]]
Say = Callable[[str], None]

_GIB: Final = 2**30


@frozen
class OwnModel:
    """One model that this node runs; `price` None where it is not sold."""

    engine: PooledEngine
    tokenizer: Tokenizer
    name: str
    price: Price | None


@frozen
class OwnModels:
    """All of them, the first one the owner's first; the pool loads and drops them."""

    pool: Pool
    machine: Machine
    models: tuple[OwnModel, ...]
    catalogue: Catalogue

    async def load_first(self) -> None:
        """Load the first model, so that what is wrong shows at the start. Raises BadModelFile, EngineError."""
        try:
            await self.models[0].engine.load()
        except LoadFailed as error:
            if isinstance(error.__cause__, BadModelFile):
                raise error.__cause__ from None
            raise

    def status(self) -> dict[str, Any]:
        """What is loaded, and how much memory it takes, for the owner. Sizes in bytes."""
        unchanged = [model.engine.is_unchanged() for model in self.models]
        rows = []
        for model, whole, seen in zip(self.models, unchanged, self.pool.seen(), strict=True):
            rows.append(
                {
                    "model": model.name,
                    "digest": seen.model.hex(),
                    "state": seen.state,
                    "jobs": seen.users,
                    "slots": seen.slots,
                    "free_slots": seen.free_slots,
                    "context": seen.context,
                    "memory": seen.bytes,
                    "price": str(model.price) if model.price else None,
                    "for_sale": model.price is not None and whole,
                    "trouble": f"its file {seen.trouble}; start the node again" if seen.trouble else None,
                }
            )
        return {
            "models": rows,
            "memory": {"allowed": self.pool.allowed, "taken": self.pool.taken},
            "machine": {
                "cores": self.machine.cores,
                "memory": self.machine.memory,
                "backend": self.machine.backend,
                "gpus": [{"name": gpu.name, "memory": gpu.memory} for gpu in self.machine.gpus],
            },
        }


async def open_models(
    home: Home, config: Config, tokenizers: Tokenizers, catalogue: Catalogue, load_engine: LoadEngine, say: Say
) -> OwnModels:
    """Name all models, and plan how each is run; nothing is loaded yet.

    `say` is told what takes time. Raises BadModelFile, BadConfig, NameTaken, DoesNotFit.
    """
    machine = await asyncio.to_thread(read_machine)
    on_gpu = machine.offloads and config.node.gpu_layers != 0
    allowed = config.node.memory or default_memory(machine, on_gpu)
    pool = Pool(allowed, used=lambda: used_memory(machine, on_gpu))
    known = KnownModels(home.models / "manifests.json")
    models: list[OwnModel] = []
    read = [await _read(settings, known, say) for settings in config.own_models]
    _check_different([model for model, _ in read])
    for settings, (model, footprint) in zip(config.own_models, read, strict=True):
        catalogue = catalogue.add_own(model.manifest, model.path.stem, settings.name)
        chosen = _plan(machine, footprint, _wishes(config, settings), allowed, len(read))
        engine = pool.add(_stock(settings, model, chosen, load_engine))
        entry = catalogue.entry(model.manifest.digest)
        tokenizer = await _tokenizer(tokenizers, model)
        models.append(OwnModel(engine, tokenizer, entry.name if entry else model.path.stem, config.price_of(settings)))
    return OwnModels(pool, machine, tuple(models), catalogue)


async def _read(settings: ModelSettings, known: KnownModels, say: Say) -> tuple[KnownModel, Footprint]:
    path, said = settings.path, -1

    def progress(done: int, whole: int) -> None:
        nonlocal said
        if done * 100 // max(whole, 1) != said:
            said = done * 100 // max(whole, 1)
            say(f"Reading {path.name} ({whole / _GIB:.1f} GiB), once until it changes: {said}%")

    def read() -> tuple[KnownModel, Footprint]:
        return known.read(path, progress), footprint_of(path)

    try:
        return await asyncio.to_thread(read)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf model file.") from None


def _check_different(models: Sequence[KnownModel]) -> None:
    seen: dict[bytes, Path] = {}
    for model in models:
        twin = seen.setdefault(model.manifest.digest, model.path)
        if twin is not model.path:
            raise BadConfig(f"{twin} and {model.path} are the same model, byte for byte: name it once")


def _wishes(config: Config, settings: ModelSettings) -> Wishes:
    node = config.node
    context = settings.context or node.context
    return Wishes(node.slots, context, node.threads, node.batch, node.kv, node.gpu_layers)


def _plan(machine: Machine, footprint: Footprint, wishes: Wishes, allowed: int, models: int) -> Plan:
    """With less KV cache, if that lets all models stay in memory side by side; never with a smaller context for it."""
    alone, shared = (plan(machine, footprint, wishes, most) for most in (allowed, allowed // models))
    return shared if shared.context == alone.context and shared.bytes <= allowed // models else alone


def _stock(settings: ModelSettings, model: KnownModel, chosen: Plan, load_engine: LoadEngine) -> Stock:
    return Stock(
        name=settings.name or model.path.name,
        path=model.path,
        identity=model.identity,
        manifest=model.manifest,
        fingerprint=Fingerprint(build(), backend(chosen.gpu_layers), chosen.kv, SAMPLER, GRAMMAR),
        context=chosen.context,
        slots=chosen.slots,
        bytes=chosen.bytes,
        load=lambda: load_engine(model.path, model.manifest, chosen),
    )


async def _tokenizer(tokenizers: Tokenizers, model: KnownModel) -> Tokenizer:
    digest = tokenizers.add_own(model.path)
    if digest != model.manifest.tokenizer:
        raise BadModelFile(str(model.path), "it changed while it was read", "Wait until it is complete.")
    return tokenizers.open_own(digest)
