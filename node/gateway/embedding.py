"""Texts as vectors, by this machine's models: peers sell none."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from attrs import field, frozen

from node.engine.port import Rows
from node.gateway.question import ContextExceeded, TooManyTokens, UnknownModel, Unservable, checked_ids
from node.gateway.supply import Supply
from node.models.tokenizer import Tokenizer

# Of all inputs of a request together, as many as OpenAI takes.
MAX_TOKENS: Final = 300_000


@frozen
class Embedded:
    """The vectors of some inputs, (inputs, width), each of length 1, in their order."""

    model: str
    rows: Rows = field(repr=False)
    tokens: int


async def embed(supply: Supply, name: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
    """The vectors of texts or token ids.

    Raises UnknownModel, Unservable, ContextExceeded, TooManyTokens, TemplateError, EngineError.
    """
    wished = supply.wished(name)
    if wished is not None and not wished:
        raise UnknownModel(name)
    here = supply.readiest([one for one in supply.local_candidates() if wished is None or one.model in wished])
    if not here:
        why = supply.troubles(wished) or [f"{name} is not here"]
        raise Unservable("embeddings are computed on this machine only", why)
    local = supply.local(supply.readiest(here)[0].model)
    prompts, tokens = [], 0
    for one in inputs:
        prompt = await _ids(one, local.tokenizer)
        if len(prompt) > local.engine.context:
            raise ContextExceeded(len(prompt), local.engine.context)
        tokens += len(prompt)
        if tokens > MAX_TOKENS:
            raise TooManyTokens(MAX_TOKENS)
        prompts.append(prompt)
    rows = await local.engine.embed(prompts)
    return Embedded(local.name, np.ascontiguousarray(rows, np.float32), tokens)


async def _ids(given: str | tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return await tokenizer.plain(given, whole=True) if isinstance(given, str) else checked_ids(given, tokenizer)
