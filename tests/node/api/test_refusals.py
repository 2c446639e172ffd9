"""Refusals over HTTP: each code with the status that the protocol gives it."""

import json
from pathlib import Path
from typing import Any

import pytest

from node.api.mesh import refusal_response
from node.wire.messages import Refused

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "messages.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["refusals"], ids=lambda v: f"{v['code']} {v['retry_after']}")
def test_a_refusal_has_the_status_and_body_of_the_vectors(vector: dict[str, Any]) -> None:
    response = refusal_response(Refused(vector["code"], vector["message"], vector["retry_after"]))
    assert response.status == vector["status"]
    assert response.body == bytes.fromhex(vector["raw"])
    retry_after = None if vector["retry_after"] is None else str(vector["retry_after"])
    assert response.headers.get("Retry-After") == retry_after
