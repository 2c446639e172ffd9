"""Models: their files, manifests, tokenizers and names."""
