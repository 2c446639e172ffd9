"""A model calls the functions of OpenAI's client, is told what came of it, and tells it on."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

WEATHER = "What is the weather in Paris?"
STORY = "Tell me a story about a fox."


def function(name: str) -> ChatCompletionToolParam:
    schema: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": "It knows.", "parameters": schema}}


TOOLS = [function("get_weather"), function("get_time")]


STRICT_PATTERN = {
    "type": "function",
    "function": {"name": "look", "strict": True, "parameters": {"properties": {"x": {"pattern": "a+"}}}},
}


def asked(text: str = WEATHER) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def answer(client: openai.OpenAI, messages: list[Any], **fields: Any) -> ChatCompletionMessage:
    fields = {"tools": TOOLS, "temperature": 0, **fields}
    completion: ChatCompletion = client.chat.completions.create(model="auto", messages=messages, **fields)
    (choice,) = completion.choices
    assert choice.finish_reason == ("tool_calls" if choice.message.tool_calls else "stop")
    return choice.message


def calls(message: ChatCompletionMessage) -> list[tuple[str, Any]]:
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or ()
        if call.type == "function"
    ]


def test_a_question_is_asked_of_a_tool_and_the_tools_answer_is_told(client: openai.OpenAI) -> None:
    conversation: list[Any] = asked()
    message = answer(client, conversation)
    assert (message.role, message.content) == ("assistant", None)
    assert calls(message) == [("get_weather", {"city": "Paris"})]
    (call,) = list(message.tool_calls or ())
    assert call.id.startswith("call_")

    conversation += [message, {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21, "sky": "sunny"}'}]
    told = answer(client, conversation)
    assert (told.content, told.tool_calls) == ("It is sunny in Paris, 21 degrees.", None)


def test_what_the_clients_own_helper_has_parsed_may_be_sent_back(client: openai.OpenAI) -> None:
    strict: list[Any] = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    conversation: list[Any] = asked()
    parsed = client.chat.completions.parse(model="auto", messages=conversation, tools=strict, temperature=0)
    message = parsed.choices[0].message
    (call,) = list(message.tool_calls or ())
    assert call.function.parsed_arguments == {"city": "Paris"}
    conversation += [message, {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21, "sky": "sunny"}'}]
    assert answer(client, conversation, tools=strict).content == "It is sunny in Paris, 21 degrees."


def test_a_call_may_be_sent_back_with_its_content_missing(client: openai.OpenAI) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Rome"}'}}
    conversation = [
        *asked("What time is it in Rome?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": '{"time": "12:30"}'},
    ]
    assert answer(client, conversation, tools=openai.omit).content == "It is 12:30 in Rome."


def test_a_call_is_streamed_by_name_and_then_arguments(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="auto", messages=asked(), tools=TOOLS, temperature=0, stream=True
    ) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    deltas = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [call.index for call in deltas] == [0, 0]
    assert [call.function and call.function.name for call in deltas] == ["get_weather", None]
    assert deltas[0].id
    assert deltas[0].id.startswith("call_")
    assert "".join((call.function and call.function.arguments) or "" for call in deltas) == '{"city":"Paris"}'
    assert "".join(choice.delta.content or "" for choice in choices) == ""
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]


def test_the_clients_own_helper_puts_a_streamed_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="auto", messages=asked(), tools=TOOLS, temperature=0) as stream:
        stream.until_done()
        message = stream.get_final_completion().choices[0].message
    assert calls(message) == [("get_weather", {"city": "Paris"})]


def test_what_needs_no_tool_is_answered_in_text(client: openai.OpenAI) -> None:
    message = answer(client, asked(STORY), seed=1, temperature=1)
    assert message.content
    assert message.tool_calls is None


def test_a_tool_without_parameters_is_shown_too(client: openai.OpenAI) -> None:
    bare: list[Any] = [{"type": "function", "function": {"name": "look"}}]
    assert answer(client, asked(STORY), tools=bare, seed=1, temperature=1).content


def test_with_the_choice_none_the_model_does_not_hear_of_tools(client: openai.OpenAI) -> None:
    without = answer(client, asked(), tools=openai.omit)
    assert answer(client, asked(), tool_choice="none") == without
    assert without.tool_calls is None


@pytest.mark.parametrize("name", ["get_weather", "get_time"])
def test_a_named_function_is_called_whatever_was_asked(client: openai.OpenAI, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    ((called, arguments),) = calls(answer(client, asked(STORY), tool_choice=choice, max_tokens=200))
    assert called == name
    assert isinstance(arguments["city"], str)


def test_where_a_call_is_required_there_is_one(client: openai.OpenAI) -> None:
    made = calls(answer(client, asked("What is a receipt?"), tool_choice="required", parallel_tool_calls=False))
    assert len(made) == 1
    assert made[0][0] in ("get_weather", "get_time")


def test_one_call_is_all_where_no_more_are_wanted(client: openai.OpenAI) -> None:
    message = answer(client, asked(), parallel_tool_calls=False)
    assert calls(message) == [("get_weather", {"city": "Paris"})]


def test_several_choices_may_each_call(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="auto", messages=asked(), tools=TOOLS, temperature=0, n=2)
    assert [calls(choice.message) for choice in completion.choices] == [[("get_weather", {"city": "Paris"})]] * 2
    assert len({call.id for choice in completion.choices for call in choice.message.tool_calls or ()}) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice.function.name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"parallel_tool_calls": False, "stop": ["x"] * 16}, "stop"),
        ({"tools": [STRICT_PATTERN]}, "tools.0.function.parameters"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_together_is_refused(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        answer(client, asked(), **fields)
    assert caught.value.param == param


def test_strict_parameters_are_kept_where_a_call_is_required(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    strict: list[Any] = [
        {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": schema}}
    ]
    ((name, arguments),) = calls(
        answer(client, asked(), tools=strict, tool_choice="required", parallel_tool_calls=False)
    )
    assert name == "get_weather"
    assert arguments["city"] in ("Rome", "Oslo")


def test_strict_parameters_may_be_left_to_the_model(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        """Where it is looked for."""

        city: str

    strict = [openai.pydantic_function_tool(Weather, name="get_weather")]
    assert calls(answer(client, asked(), tools=strict)) == [("get_weather", {"city": "Paris"})]


def test_a_name_that_the_template_does_not_show_is_refused(client: openai.OpenAI) -> None:
    named: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello", "name": "Ada"}]
    with pytest.raises(openai.BadRequestError, match="does not show names") as caught:
        client.chat.completions.create(model="auto", messages=named)
    assert caught.value.code == "unsupported_by_template"
