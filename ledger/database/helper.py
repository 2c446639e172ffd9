"""Checks stretches of a chain in a file of SQLite, in a process of its own; run by `ledger.database.helpers`.

Arguments: the import path (JSON), the file, the chain's number. Each line of its input asks for the entries after one
sequence number up to another; each answer is a pickled `Stretch`. Whatever is wrong ends it: who asked looks again. It
imports the pure ledger alone, so that it starts quickly.
"""

import gc
import json
import pickle
import sqlite3
import sys
from pathlib import Path
from typing import Final

_ENTRIES: Final = """
    SELECT sequence, time_ms, payload, previous, hash FROM journal
    WHERE chain = ? AND sequence > ? AND sequence <= ? ORDER BY sequence
"""
_RECORDS: Final = """
    SELECT digest, kind, "order", sequence, raw FROM records WHERE chain = ? AND sequence > ? AND sequence <= ?
"""


def main() -> None:
    """Answer until the input ends."""
    sys.path[:] = json.loads(sys.argv[1])
    from ledger.stretch import check_stretch

    # What is made for one stretch is gone with it, and holds no cycles.
    gc.disable()
    connection = sqlite3.connect(f"{Path(sys.argv[2]).absolute().as_uri()}?mode=ro", uri=True)
    chain = int(sys.argv[3])
    for line in sys.stdin:
        after, until = map(int, line.split())
        wanted = chain, after, until
        entries = connection.execute(_ENTRIES, wanted).fetchall()
        stretch = check_stretch(after, entries, connection.execute(_RECORDS, wanted))
        assert stretch.head.sequence == until
        pickle.dump(stretch, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
