"""Was the work honest? Pure functions: the seeded sampler, its replay, and what follows from both."""
