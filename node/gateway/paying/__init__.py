"""Remote backends that are paid for each request by x402: what may be promised, what was, and what became of it."""
