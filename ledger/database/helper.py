"""Verifies parts of a chain in a file of SQLite, in a process of its own; run by `ledger.database.helpers`.

Arguments: the import path (JSON), the file, the chain's number and its node's did:key. Each line of its input asks for
the part after one sequence number (0, or a waypoint's) up to another, of a waypoint; each answer is a pickled `Found`.
Whatever is wrong ends it: who asked looks again. It imports the pure ledger alone, so that it starts quickly.
"""

import gc
import json
import pickle
import sqlite3
import sys
from pathlib import Path
from typing import Final, cast

_ENTRIES: Final = """
    SELECT sequence, time_ms, payload, previous, hash FROM journal
    WHERE chain = ? AND sequence > ? AND sequence <= ? ORDER BY sequence
"""
_RECORDS: Final = """
    SELECT digest, kind, "order", sequence, raw FROM records WHERE chain = ? AND sequence > ? AND sequence <= ?
"""
_WAYPOINT: Final = "SELECT books FROM waypoints WHERE chain = ? AND sequence = ?"
# Entries read at a time: so few that what they hold stays in the processor's caches.
_BATCH: Final = 200


def main() -> None:
    """Answer until the input ends."""
    sys.path[:] = json.loads(sys.argv[1])
    from ledger.stretch import Passage

    # What is made for one part is gone with it, and holds no cycles.
    gc.disable()
    connection = sqlite3.connect(f"{Path(sys.argv[2]).absolute().as_uri()}?mode=ro", uri=True)
    chain, chain_id = int(sys.argv[3]), sys.argv[4]

    def waypoint(sequence: int) -> bytes:
        return cast(bytes, connection.execute(_WAYPOINT, (chain, sequence)).fetchone()[0])

    part = Passage.begin(chain_id)
    for line in sys.stdin:
        first, last = map(int, line.split())
        follows = part.replayed.head.sequence == first
        part = part.next() if follows else Passage.begin(chain_id, waypoint(first) if first else None)
        for after in range(first, last, _BATCH):
            wanted = chain, after, min(after + _BATCH, last)
            part.take(connection.execute(_ENTRIES, wanted).fetchall(), connection.execute(_RECORDS, wanted))
        if not part.ends_with(waypoint(last)):
            sys.exit("this is not where the next part begins")
        pickle.dump(part.found, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
