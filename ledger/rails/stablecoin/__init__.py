"""The stablecoin rail: payment channels on an Ethereum network, paid for off chain and settled on it.

Unlike the rest of the ledger it talks to a network and keeps a file: `networks` are data, `rpc` asks endpoints that
nobody trusts, `keys` signs, `transactions` sees to it that what was sent arrives, `watch` follows the channels, and
`chain` is all of this behind one facade.
"""
