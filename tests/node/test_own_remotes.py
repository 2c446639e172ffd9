"""Remote backends as the owner writes them: keys found and never told, models named as far as a file tells."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ledger.money import Price
from node.config import BadConfig, Config, RemoteSettings
from node.engine.remote import RemoteEngine
from node.gateway.remotes import Tokens
from node.home import Home
from node.models.gguf import BadModelFile
from node.models.manifest import manifest_of, tokenizer_file
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from node.own_remotes import OwnRemote, key_of, open_remotes
from tests.node.trading import DEMO

NOTHING: Mapping[str, bytes] = {}
KEY = "sk-never-to-be-seen"
FIELDS: dict[str, Any] = {"name": "cloud", "url": "http://127.0.0.1:1/v1/", "model": "big"}


def settings(**more: Any) -> RemoteSettings:
    return RemoteSettings(**FIELDS | more)


# Keys


def test_without_a_place_there_is_no_key() -> None:
    assert key_of(settings()) is None


def test_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", f" {KEY}\n")
    assert key_of(settings(key_env="CLOUD_KEY")) == KEY


def test_a_key_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    assert key_of(settings(key_file=tmp_path / "key")) == KEY


def test_a_key_that_is_not_there_is_asked_for_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUD_KEY", raising=False)
    with pytest.raises(BadConfig, match=r"remotes\.cloud: the environment has no CLOUD_KEY"):
        key_of(settings(key_env="CLOUD_KEY"))
    with pytest.raises(BadConfig, match=r"remotes\.cloud: the key file .* cannot be read"):
        key_of(settings(key_file=tmp_path / "none"))


@pytest.mark.parametrize("text", ["", " \n", KEY + "\nX-Other: 1", KEY + "ü", "x" * 5_000])
def test_what_cannot_be_a_key_is_not_sent_and_not_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(BadConfig, match="is no key") as error:
        key_of(settings(key_file=tmp_path / "key"))
    assert KEY not in str(error.value)


# Opening


@pytest.fixture
async def tokenizers(tmp_path: Path) -> AsyncIterator[Tokenizers]:
    renderer = TemplateRenderer()
    made = Tokenizers(tmp_path / "tokenizers", renderer)
    yield made
    await made.close()
    await renderer.close()


async def opened(
    tokenizers: Tokenizers, folder: Path, *remotes: RemoteSettings, here: Mapping[str, bytes] = NOTHING, **sections: Any
) -> tuple[OwnRemote, ...]:
    home = Home(folder / "home")
    home.make()
    config = Config(remotes=remotes, **sections)
    async with aiohttp.ClientSession() as session:
        return await open_remotes(config, home, session, tokenizers, here.keys(), here.values())


async def test_a_remote_without_a_file_gives_text(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (remote,) = await opened(tokenizers, tmp_path, settings(quality=0.7))

    assert remote.backend.tokenizer is None
    assert remote.ware is None
    assert remote.backend.quality == 0.7
    await remote.close()


async def test_the_model_s_own_file_gives_it_its_name(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (remote,) = await opened(tokenizers, tmp_path, settings(tokenizer=DEMO, context=2**20))

    manifest = manifest_of(DEMO)
    assert remote.backend.model == manifest.digest
    assert remote.backend.context == manifest.context
    assert remote.backend.tokenizer is not None
    assert remote.backend.tokenizer.digest == manifest.tokenizer
    assert remote.ware is None
    await remote.close()


async def test_a_tokenizer_alone_counts_and_names_nothing(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (tmp_path / "words.gguf").write_bytes(tokenizer_file(DEMO))
    (remote,) = await opened(tokenizers, tmp_path, settings(tokenizer=tmp_path / "words.gguf", quality=0.4))

    assert isinstance(remote.backend.speaks, Tokens)
    assert remote.backend.model != manifest_of(DEMO).digest
    assert remote.backend.quality == 0.4


async def test_a_sold_remote_says_where_it_computes(tokenizers: Tokenizers, tmp_path: Path) -> None:
    cloud = settings(tokenizer=DEMO, sell=True, jurisdiction="CH", retention=30, privacy="internal")
    (remote,) = await opened(tokenizers, tmp_path, cloud, sell={"price": "1usd:2usd"})

    assert remote.ware is not None
    assert remote.ware.price == Price(1_000_000, 2_000_000, "uusd")
    assert remote.ware.elsewhere is not None
    said = remote.ware.elsewhere
    assert (said.ceiling, said.jurisdiction, said.retention) == ("internal", "CH", "30 days")
    assert remote.ware.engine.fingerprint.backend == "remote"


async def test_a_server_on_the_owner_s_hardware_is_nobody_else_s(tokenizers: Tokenizers, tmp_path: Path) -> None:
    own = settings(tokenizer=DEMO, sell=True, hardware="own", jurisdiction="CH", privacy="confidential")
    (remote,) = await opened(tokenizers, tmp_path, own, sell={"price": "1usd:2usd"})

    assert remote.ware is not None
    assert remote.ware.elsewhere is not None
    assert (remote.ware.elsewhere.jurisdiction, remote.ware.engine.fingerprint.backend) == (None, "server")


async def test_what_no_file_names_is_not_sold(tokenizers: Tokenizers, tmp_path: Path) -> None:
    (tmp_path / "words.gguf").write_bytes(tokenizer_file(DEMO))
    words = settings(tokenizer=tmp_path / "words.gguf", sell=True)

    with pytest.raises(BadConfig, match="has no weights"):
        await opened(tokenizers, tmp_path, words, sell={"price": "1usd:2usd"})


async def test_a_model_is_sold_in_one_place(tokenizers: Tokenizers, tmp_path: Path) -> None:
    cloud = settings(tokenizer=DEMO, sell=True)

    with pytest.raises(BadConfig, match="is sold already"):
        await opened(tokenizers, tmp_path, cloud, here={"demo": manifest_of(DEMO).digest}, sell={"price": "1usd:2usd"})


async def test_a_name_means_one_model(tokenizers: Tokenizers, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="name it otherwise"):
        await opened(tokenizers, tmp_path, settings(), here={settings().name: b""})


@pytest.mark.parametrize("content", [None, b"nothing of the kind"])
async def test_a_file_that_is_none_is_named(tokenizers: Tokenizers, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)

    with pytest.raises(BadModelFile, match=r"m\.gguf"):
        await opened(tokenizers, tmp_path, settings(tokenizer=tmp_path / "m.gguf"))


async def test_no_key_is_seen_in_what_is_opened(
    tokenizers: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY", KEY)
    (remote,) = await opened(tokenizers, tmp_path, settings(tokenizer=DEMO, key_env="CLOUD_KEY"))

    assert isinstance(remote.backend.speaks, Tokens)
    assert isinstance(remote.backend.speaks.engine, RemoteEngine)
    assert KEY not in repr(remote)
