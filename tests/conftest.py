"""What tests share: a server of PostgreSQL and a chain, each started when the first of them asks for it."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings

import ledger.rails.stablecoin  # noqa: F401 - it undoes what the libraries of chains do to the depth of recursion
from ledger.database import upgrade_tables
from tests import chain as chains
from tests.postgres import NotInstalled, Server, running
from tools.contracts import NotAvailable

# A busy machine is no fault of what is tested: no example has a time.
settings.register_profile(
    "no clock",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("no clock")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server; its database `upgraded` has the ledger's tables, for others to be copied from."""
    try:
        with running() as server:
            server.run("postgres", "CREATE DATABASE upgraded")
            # In a thread: a test's own loop may be running.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(upgrade_tables(server.url("upgraded")))).result()
            yield server
    except NotInstalled as missing:
        pytest.skip(str(missing))


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """An empty ledger in a database of its own."""
    with postgres.database("upgraded") as name:
        yield postgres.url(name)


@pytest.fixture
def bare_postgres_url(postgres: Server) -> Iterator[str]:
    """A database without tables."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture(scope="session")
def whole_chain() -> Iterator[chains.Anvil]:
    """An anvil with the contracts and a dollar on it."""
    try:
        with chains.running() as chain:
            yield chain
    except NotAvailable as missing:
        pytest.skip(str(missing))


@pytest.fixture
def chain(whole_chain: chains.Anvil) -> Iterator[chains.Anvil]:
    """The same, as it was when the tests began; what a test does to it is undone."""
    with whole_chain.restored():
        yield whole_chain
