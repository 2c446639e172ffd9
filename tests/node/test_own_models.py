"""The owner's models: named, planned, loaded and dropped, with real files and llama.cpp."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger.records import Offer, open_record
from node.app import load_llama
from node.config import BadConfig, Config, load_config
from node.demo.calibration import lend
from node.engine.calibration import CalibrationFiles
from node.engine.hardware import Plan
from node.engine.memory import MemoryEngine
from node.engine.port import Engine, Job
from node.engine.stock import DoesNotFit
from node.exchange.auditor import Auditor
from node.home import Home
from node.models.catalogue import DEMO_NAME, NameTaken, shipped
from node.models.gguf import BadModelFile
from node.models.llama import quantize
from node.models.manifest import Manifest
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.own_models import LoadEngine, OwnModels, open_models
from node.ports import ManualClock
from node.wire.messages import Refused
from tests.node.trading import DEMO, HOT, PROMPT, Customer, Store


@pytest.fixture(scope="session")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "demo-Q4_K_M.gguf"
    quantize(DEMO, path, "Q4_K_M", threads=1)
    return path


class Opening:
    """Opens models in one home, again and again; what was said is kept."""

    def __init__(self, folder: Path, tokenizers: Tokenizers) -> None:
        self.home, self.tokenizers = Home(folder), tokenizers
        self.said: list[str] = []
        self.opened: list[OwnModels] = []

    async def __call__(self, config: Config, load_engine: LoadEngine = load_llama) -> OwnModels:
        self.said.clear()
        own = await open_models(self.home, config, self.tokenizers, shipped(), load_engine, self.said.append)
        self.opened.append(own)
        return own


@pytest.fixture
async def opening(tmp_path: Path) -> AsyncIterator[Opening]:
    home = tmp_path / "home"
    tokenizers = Tokenizers(home / "models" / "tokenizers", TemplateRenderer())
    made = Opening(home, tokenizers)
    yield made
    for own in made.opened:
        await own.pool.close()
    await tokenizers.close()


def settings(*models: Path | dict[str, Any], **node: Any) -> Config:
    rows = [{"path": model} if isinstance(model, Path) else model for model in models]
    return Config.model_validate({"node": {"threads": 1, "context": 512, "slots": 1, **node}, "models": rows})


async def load_nothing(_path: Path, manifest: Manifest, plan: Plan) -> Engine:
    return MemoryEngine(manifest, slots=plan.slots)


async def answer(engine: Engine, seed: int = 1) -> list[int]:
    async with contextlib.aclosing(engine.generate(Job(PROMPT, HOT, seed, 20))) as pieces:
        return [token async for piece in pieces for token in piece.ids]


async def test_two_quantizations_answer_from_one_node_and_memory_for_one_drops_the_other(
    smaller: Path, opening: Opening
) -> None:
    own = await opening(settings(DEMO, smaller, memory="80MiB"))
    first, second = (model.engine for model in own.models)
    await own.load_first()
    assert (first.state, second.state) == ("loaded", "on disk")

    large = await answer(first)
    small = await answer(second)
    assert (first.state, second.state) == ("on disk", "loaded")
    assert large != small
    assert await answer(first) == large
    assert (first.state, second.state) == ("loaded", "on disk")
    assert own.pool.taken <= own.pool.allowed


async def test_what_both_sold_can_be_audited_one_after_the_other_in_memory_for_one(
    smaller: Path, opening: Opening, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    own = await opening(settings(DEMO, smaller, memory="80MiB"))
    engines = [model.engine for model in own.models]
    customer = await Customer.open(tokenizer, clock, engines=engines)
    for seed, engine in enumerate(engines, 11):
        store = await Store.open(tokenizer, clock, engine=engine, seed=seed)
        delivery = await customer.order(await customer.meet(store.seller), max_tokens=20)
        assert delivery.receipt is not None
        audit = await customer.auditor.audit(delivery.terms, delivery.receipt.digest, delivery.ids)
        assert (audit.outcome, audit.abstained) == ("honest", False)


async def test_the_demo_is_audited_as_it_comes_and_its_smaller_copy_once_somebody_calibrates_it(
    smaller: Path, opening: Opening, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    own = await opening(settings(DEMO, smaller, memory="80MiB"))
    engines = [model.engine for model in own.models]
    customer = await Customer.open(tokenizer, clock, engines=engines)
    calibrations = CalibrationFiles(opening.home.calibrations)
    lend(calibrations)
    auditor = Auditor(customer.book, engines, calibrations.find, lambda _: tokenizer)
    audits = []
    for seed, engine in enumerate(engines, 11):
        store = await Store.open(tokenizer, clock, engine=engine, seed=seed)
        delivery = await customer.order(await customer.meet(store.seller), max_tokens=20)
        assert delivery.receipt is not None
        audits.append(await auditor.audit(delivery.terms, delivery.receipt.digest, delivery.ids))

    assert [(audit.outcome, audit.abstained) for audit in audits] == [("honest", False), ("undecided", True)]
    assert "`idlemesh calibrate MODEL`" in audits[1].reason


async def test_an_unloaded_model_says_what_its_engine_will_say(smaller: Path, opening: Opening) -> None:
    own = await opening(settings(smaller, context=256, slots=2, kv="q8_0"))
    engine = own.models[0].engine
    before = (engine.fingerprint, engine.context, engine.slots, engine.manifest)
    await own.load_first()
    assert engine.state == "loaded"
    assert (engine.fingerprint, engine.context, engine.slots, engine.manifest) == before


async def test_all_stay_in_memory_where_there_is_room(smaller: Path, opening: Opening) -> None:
    own = await opening(settings(DEMO, smaller), load_nothing)
    for model in own.models:
        await model.engine.load()
    assert [model.engine.state for model in own.models] == ["loaded", "loaded"]


async def test_a_second_start_reads_no_file_again(smaller: Path, opening: Opening) -> None:
    await opening(settings(DEMO, smaller), load_nothing)
    assert "Reading demo-Q4_K_M.gguf (0.0 GiB), once until it changes: 100%" in opening.said
    await opening(settings(DEMO, smaller), load_nothing)
    assert opening.said == []


async def test_without_settings_the_shipped_model_runs_and_is_not_sold(opening: Opening) -> None:
    own = await opening(load_config(None, {}), load_nothing)
    assert [(model.name, model.price) for model in own.models] == [(DEMO_NAME, None)]


async def test_the_owner_may_name_models_and_price_each(smaller: Path, opening: Opening) -> None:
    own = await opening(
        settings({"path": DEMO, "name": "large", "price": "1usd:2usd"}, {"path": smaller, "context": 128}),
        load_nothing,
    )
    assert [(model.name, str(model.price)) for model in own.models] == [
        ("large", "1.000000usd:2.000000usd"),
        ("demo-Q4_K_M", "None"),
    ]
    assert [model.engine.context for model in own.models] == [512, 128]
    entry = own.catalogue.entry(own.models[0].engine.manifest.digest)
    assert entry is not None
    assert (entry.name, entry.family, entry.licence) == ("large", "idlemesh-demo", "CC0-1.0")


async def test_two_models_of_one_name_need_another(smaller: Path, opening: Opening, tmp_path: Path) -> None:
    same = tmp_path / smaller.name
    quantize(DEMO, same, "Q3_K_M", threads=1)
    with pytest.raises(NameTaken, match="choose another name"):
        await opening(settings(smaller, same), load_nothing)
    own = await opening(settings(smaller, {"path": same, "name": "third"}), load_nothing)
    assert [model.name for model in own.models] == ["demo-Q4_K_M", "third"]


async def test_one_model_under_two_paths_is_named_once(opening: Opening, tmp_path: Path) -> None:
    copy = Path(shutil.copy(DEMO, tmp_path))
    with pytest.raises(BadConfig, match="the same model, byte for byte"):
        await opening(settings(DEMO, copy), load_nothing)


async def test_what_is_wrong_with_any_file_shows_at_the_start(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(BadModelFile, match=r"x\.gguf"):
        await opening(settings(DEMO, tmp_path / "x.gguf"), load_nothing)
    with pytest.raises(BadModelFile, match=r"y\.gguf: it cannot be read"):
        await opening(settings(DEMO, tmp_path / "y.gguf"), load_nothing)


async def test_a_model_that_the_memory_never_holds_is_refused_at_the_start(opening: Opening) -> None:
    with pytest.raises(DoesNotFit, match=r"\[node\] memory"):
        await opening(settings(DEMO, memory="2MiB"), load_nothing)


async def test_a_file_that_does_not_load_is_the_error_of_the_start(opening: Opening) -> None:
    async def load_broken(path: Path, _manifest: Manifest, _plan: Plan) -> Engine:
        raise BadModelFile(str(path), "it is broken", "Download it again.")

    own = await opening(settings(DEMO), load_broken)
    with pytest.raises(BadModelFile, match="Download it again"):
        await own.load_first()


async def test_the_status_says_what_is_loaded_and_what_is_wrong(
    smaller: Path, opening: Opening, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(smaller, tmp_path))
    own = await opening(settings(DEMO, {"path": copy, "price": "1usd:2usd"}), load_nothing)
    await own.load_first()
    first, second = own.status()["models"]
    assert (first["state"], first["for_sale"], first["trouble"]) == ("loaded", False, None)
    assert (second["state"], second["for_sale"], second["price"]) == ("on disk", True, "1.000000usd:2.000000usd")
    assert own.status()["memory"] == {"allowed": own.pool.allowed, "taken": first["memory"]}
    assert own.status()["machine"]["cores"] >= 1
    os.utime(copy, ns=(1, 1))
    second = own.status()["models"][1]
    assert (second["for_sale"], second["trouble"]) == (False, "its file was changed; start the node again")


async def test_a_model_whose_file_changed_is_offered_and_sold_no_more(
    smaller: Path, opening: Opening, tokenizer: Tokenizer, clock: ManualClock, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(smaller, tmp_path))
    own = await opening(settings(copy), load_nothing)
    engine = own.models[0].engine
    store = await Store.open(tokenizer, clock, engine=engine, is_unchanged=engine.is_unchanged)
    customer = await Customer.open(tokenizer, clock)
    offer = await customer.meet(store.seller)
    assert isinstance(offer.record, Offer)
    os.utime(copy, ns=(1, 1))

    placing = customer.buy(offer)
    with pytest.raises(Exception, match="not open any more") as error:
        await placing.outcome()
    assert not isinstance(error.value, Refused)
    assert await store.seller.offers() == []
    assert open_record(offer.raw, Offer).record.model == engine.manifest.digest
    await customer.close()
