"""The owner's programs say how far a prompt may go, which way, and whether a lesser model may answer."""

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.node.api.running import MODEL, OUT_OF_REACH

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
NOBODYS = "nobodys-model-70b"
ELSEWHERE = "sha256:" + "ab" * 32


@pytest.mark.parametrize("level", ["public", "internal", "confidential", "restricted"])
def test_each_privacy_level_is_answered_here(client: openai.OpenAI, level: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Privacy": level}
    )
    assert raw.headers["x-idlemesh-route"] == "local"


@pytest.mark.parametrize("level", ["public", "internal", "confidential", "restricted"])
def test_the_privacy_level_may_come_as_metadata(client: openai.OpenAI, level: str) -> None:
    answer = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=1, metadata={"privacy": level})
    assert answer.model == MODEL


@pytest.mark.parametrize("level", ["", "secret", "Public", "internal "])
def test_a_privacy_level_that_does_not_exist_is_refused(client: openai.OpenAI, level: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="auto", messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Privacy": level + "!"}
        )
    assert caught.value.param == "X-IdleMesh-Privacy"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=HELLO, max_tokens=1, metadata={"privacy": level})
    assert caught.value.param == "metadata.privacy"


@pytest.mark.parametrize("level", ["confidential", "restricted"])
def test_what_may_not_go_out_and_cannot_be_served_here_says_so(client: openai.OpenAI, level: str) -> None:
    with pytest.raises(openai.InternalServerError, match=f"a {level} prompt must not leave this machine") as caught:
        client.chat.completions.create(
            model=OUT_OF_REACH,
            messages=HELLO,
            extra_headers={"X-IdleMesh-Privacy": level, "X-IdleMesh-Degrade": "never"},
        )
    assert caught.value.status_code == 503


def test_a_model_out_of_reach_is_a_503_where_degrading_is_forbidden(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="runs another model") as caught:
        client.chat.completions.create(
            model=OUT_OF_REACH, messages=HELLO, extra_headers={"X-IdleMesh-Degrade": "never"}
        )
    assert caught.value.status_code == 503
    assert caught.value.code == "nobody_can_answer"


@pytest.mark.parametrize("route", ["auto", "local"])
def test_a_route_over_this_machine_is_answered_here(client: openai.OpenAI, route: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Route": route}
    )
    assert raw.headers["x-idlemesh-route"] == "local"
    assert "x-idlemesh-degraded" not in raw.headers


def test_without_peers_the_route_over_peers_ends_here_and_says_so(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Route": "peers"}
    )
    assert raw.headers["x-idlemesh-route"] == "local"
    assert MODEL in raw.headers["x-idlemesh-degraded"]


def test_without_peers_and_where_degrading_is_forbidden_nobody_answers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(
            model="auto",
            messages=HELLO,
            extra_headers={"X-IdleMesh-Route": "peers", "X-IdleMesh-Degrade": "never"},
        )
    assert caught.value.status_code == 503
    assert caught.value.code == "nobody_can_answer"


def test_a_route_that_does_not_exist_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=HELLO, extra_headers={"X-IdleMesh-Route": "cloud"})
    assert caught.value.param == "X-IdleMesh-Route"


def test_a_model_that_nobody_has_is_answered_by_a_lesser_one_that_says_so(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=NOBODYS, messages=HELLO, max_tokens=1)
    assert raw.parse().model == MODEL
    assert NOBODYS in raw.headers["x-idlemesh-degraded"] or MODEL in raw.headers["x-idlemesh-degraded"]


def test_a_stream_of_a_lesser_model_says_so_in_header_and_last_chunk(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=NOBODYS, messages=HELLO, max_tokens=2, stream=True
    ) as raw:
        degraded = raw.headers["x-idlemesh-degraded"]
        chunks = list(raw.parse())
    assert (chunks[-1].model_extra or {})["idlemesh"] == {"route": "local", "degraded": degraded}
    assert chunks[-1].model == MODEL


@pytest.mark.parametrize("name", [NOBODYS, ELSEWHERE, "idlemesh-demo:Q9", "no-family:Q4", ":", "sha256:"])
def test_a_model_that_nobody_has_is_not_found_where_degrading_is_forbidden(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=HELLO, extra_headers={"X-IdleMesh-Degrade": "never"})
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", [MODEL, "auto", "idlemesh-demo:Q8", "idlemesh-demo:Q5"])
def test_where_degrading_is_forbidden_the_wished_model_answers(client: openai.OpenAI, name: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=name, messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Degrade": "never"}
    )
    assert raw.parse().model == MODEL
    assert "x-idlemesh-degraded" not in raw.headers


def test_whether_to_degrade_is_never_or_allow(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=HELLO, extra_headers={"X-IdleMesh-Degrade": "maybe"})
    assert caught.value.param == "X-IdleMesh-Degrade"
    answer = client.chat.completions.create(
        model=NOBODYS, messages=HELLO, max_tokens=1, extra_headers={"X-IdleMesh-Degrade": "allow"}
    )
    assert answer.model == MODEL
