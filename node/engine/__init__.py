"""Engines: what turns prompt ids into answer ids, and answers into logits again."""
