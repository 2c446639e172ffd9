"""`idlemesh ask`: one question, streamed."""

from typing import Annotated, Any

import typer

from node.cli.client import call
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, plain, print_json
from node.home import open_home
from node.owner_client import OwnerClient


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    home: HomeOption = None,
    model: Annotated[str, typer.Option(help="A model's name, or auto.")] = "auto",
    route: Annotated[str | None, typer.Option(help="auto, local, peers or remotes.")] = None,
    privacy: Annotated[str | None, typer.Option(help="public, internal, confidential or restricted.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is always the same, 1 the model's own variety.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the running node one question; the last line says who answered, tokens, cost and receipt.

    Example: idlemesh ask "What is a receipt?"
    """
    if not question.strip():
        raise CommandFailed('there is no question: write one in quotes, as idlemesh ask "What is a receipt?"')
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    body |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    headers = {"X-IdleMesh-Route": route, "X-IdleMesh-Privacy": privacy}
    body = {name: value for name, value in body.items() if value is not None}
    sent = {name: value for name, value in headers.items() if value is not None}
    result = call(open_home(home), lambda client: stream(client, body, sent, quiet=as_json))
    if as_json:
        print_json(result)


async def stream(client: OwnerClient, body: dict[str, Any], headers: dict[str, str], quiet: bool) -> dict[str, Any]:
    """Stream an answer to the terminal (unless quiet); what it was in the end is returned, and said in one line."""
    text, model, finish = "", body["model"], None
    facts: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    async for event in client.chat(body, headers):
        model = event.get("model", model)
        facts = event.get("idlemesh", facts)
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            part = choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            text += part
            if not quiet:
                typer.echo(plain(part), nl=False)
    result = {"text": text, "model": model, "finish": finish, "usage": usage, **facts}
    if not quiet:
        typer.echo()
        typer.secho(plain(summary(result)), dim=True)
    return result


def summary(result: dict[str, Any]) -> str:
    """One line: who answered, tokens, cost, receipt."""
    usage = result["usage"]
    who = "this machine" if result.get("route") == "local" else result.get("route", "nobody")
    parts = [
        f"{result['model']} by {who}",
        f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens",
        result.get("cost", "free"),
    ]
    if "receipt" in result:
        parts.append("receipt " + ", ".join(one[:12] for one in result["receipt"].split(", ")))
    if "degraded" in result:
        parts.append(f"degraded: {result['degraded']}")
    return " · ".join(parts)
