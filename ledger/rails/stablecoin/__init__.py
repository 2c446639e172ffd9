"""The stablecoin rail: payment channels on an Ethereum network, paid for off chain and settled on it.

Unlike the rest of the ledger it talks to a network and keeps a file: `networks` are data, `rpc` asks endpoints that
nobody trusts, `keys` signs, `transactions` sees to it that what was sent arrives, `watch` follows the channels, and
`chain` is all of this behind one facade.
"""

import sys
from typing import Final

# A library of eth-account's allows a recursion of 100,000 in the whole process when it is imported. Anybody's JSON of
# that many brackets would then overflow the stack, which ends the process; so it is imported here, and that undone.
import py_ecc  # noqa: F401

_RECURSION: Final = 1_000  # Python's own
sys.setrecursionlimit(_RECURSION)
