"""`idlemesh ask`: one question, streamed."""

from typing import Any

import typer

from node.cli.output import plain
from node.owner_client import OwnerClient


async def ask(client: OwnerClient, body: dict[str, Any], headers: dict[str, str], quiet: bool) -> dict[str, Any]:
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
