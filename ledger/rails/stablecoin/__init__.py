"""The stablecoin rail: payment channels on a chain of the EVM, by x402's `batch-settlement`. Only a node uses it.

A channel holds the payer's deposit; its vouchers are cumulative, as ours are. What is said and signed (`digests`,
`vouchers`, `channels`) is pure; what asks a chain is not.
"""
