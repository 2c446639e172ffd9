"""What commands read from the ledger of a node that does not run."""

from typing import Any

from ledger.database import Database
from node.api.channel_rows import channel_row
from node.api.comparisons import comparison_rows
from node.api.owner import account_rows
from node.cli.ledger import place_on_disk
from node.exchange.book import Book
from node.exchange.channel_rows import channel_rows
from node.exchange.heads import stored_meetings
from node.home import Home
from node.ports import SystemClock, SystemEntropy


async def accounts_from_disk(home: Home) -> dict[str, Any]:
    place, identity = place_on_disk(home), home.identity(SystemEntropy())
    with home.lock():
        async with await Database.open(place, identity.did) as database:
            meetings = (await Book.open(database, identity, SystemClock())).experience.meetings
            compared = comparison_rows(await stored_meetings(database, meetings), meetings.cut)
            return await account_rows(database, identity.did) | compared


async def channels_from_disk(home: Home) -> dict[str, Any]:
    place, identity = place_on_disk(home), home.identity(SystemEntropy())
    with home.lock():
        async with await Database.open(place, identity.did) as database:
            book = await Book.open(database, identity, SystemClock())
            return {"channels": [channel_row(row, book.me) for row in channel_rows(book, lambda _: None)]}
