"""Pure rules of the market: the offer book, who may see a prompt, which candidate is best, which order is taken."""
