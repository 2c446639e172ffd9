"""Work for strangers who pay for each request by x402: reading their payments, and taking them."""
