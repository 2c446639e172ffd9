"""Every HTTP door: OpenAI-compatible for the owner, `/mesh/v1` for peers, `/node/v1` for the owner's commands."""
