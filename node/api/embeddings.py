"""`/v1/embeddings`: texts or token ids as vectors."""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from node.api.completions import Ids, prompts_of
from node.api.errors import ApiError
from node.api.requests import Body
from node.engine.port import Rows
from node.gateway.embedding import Embedded

MAX_INPUTS: Final = 2_048

Inputs = (
    str
    | Ids
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
)


class EmbeddingRequest(Body):
    """The body of a request."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def inputs(self) -> Sequence[str | tuple[int, ...]]:
        """Each input as text or ids. Raises ApiError."""
        inputs = prompts_of(self.input)
        if any(not one for one in inputs):
            raise ApiError(400, "input holds an empty text: leave it out", param="input", code="invalid_value")
        return inputs


def body_of(asked: EmbeddingRequest, embedded: Embedded) -> Iterator[bytes]:
    """The answer as JSON, a vector at a time. Raises ApiError for another width than the model's: cut vectors mean
    little for most models.
    """
    width = embedded.rows.shape[1]
    if asked.dimensions not in (None, width):
        why = f"dimensions: the vectors of {embedded.model} have {width}: leave it out"
        raise ApiError(400, why, param="dimensions", code="invalid_value")
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    head = {"object": "list", "model": embedded.model, "usage": usage, "idlemesh": {"route": "local"}}
    yield json.dumps(head).encode()[:-1] + b', "data": ['
    for index, row in enumerate(embedded.rows):
        one = {"object": "embedding", "index": index, "embedding": _encoded(row, asked.encoding_format)}
        yield (b", " if index else b"") + json.dumps(one).encode()
    yield b"]}"


def _encoded(row: Rows, form: str | None) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return [float(value) for value in row]
