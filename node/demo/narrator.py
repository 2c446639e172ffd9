"""The tour's voice: what happens, in words and as it happens."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from node.demo.processes import NodeProcess

_COLOURS = {"honest": "green", "cheat": "yellow"}


class StoryLine:
    """One answer on the screen, growing as it streams."""

    def __init__(self, live: Live, head: str) -> None:
        self._live = live
        self._head = head
        self._text = ""

    def add(self, text: str) -> None:
        """More of the answer."""
        self._text += text
        self._show("")

    def end(self, seller: str, facts: dict[str, Any]) -> None:
        """The answer is whole: who gave it, and for how much."""
        name = {"honest": "the honest seller", "cheat": "the cheaper seller"}.get(seller, seller)
        colour = _COLOURS.get(seller, "red")
        receipt = facts.get("receipt", "none")[:8]
        self._show(f"\n      [{colour}]{name}[/] · {facts.get('cost', 'free')} · receipt {receipt}")

    def _show(self, tail: str) -> None:
        self._live.update(
            Text.from_markup(f"[dim]{self._head}[/] {escape(self._text)}{tail}", emoji=False), refresh=True
        )


class Narrator:
    """Tells the story on a console; a quiet console tells nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def opening(self, honest_only: bool) -> None:
        """What is going to happen."""
        third = "a second honest one" if honest_only else "one that offers Q8_0 weights and secretly runs Q2_K"
        self._console.print(
            Panel(
                "Three nodes on this machine, each a process of its own: yours, an honest seller, and "
                f"{third}.\nYour node buys stories, replays them on its own weights, and pays for honest work.",
                title="idlemesh",
                title_align="left",
            )
        )

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Something that may take a while."""
        if self._console.quiet:
            yield
            return
        with self._console.status(what):
            yield

    def nodes(self, owner: NodeProcess, honest: NodeProcess, cheat: NodeProcess, honest_only: bool) -> None:
        """Who takes part."""
        third = "another seller  " if honest_only else "cheaper seller  "
        for name, node in (("your node       ", owner), ("honest seller   ", honest), (third, cheat)):
            self._console.print(f"  {name} [dim]{node.running.did}[/]  {node.running.url}")
        self._console.print()

    @contextlib.contextmanager
    def story(self, number: int, of: int, prompt: str) -> Iterator[StoryLine]:
        """One order."""
        head = f"{number:2}/{of} {escape(prompt)}"
        with Live(console=self._console, auto_refresh=False, transient=False) as live:
            yield StoryLine(live, head)
        if not self._console.is_terminal:
            self._console.print()  # elsewhere the live line ends without an end of line

    def news(self, peers: list[dict[str, Any]], names: dict[str, str], told: set[str]) -> None:
        """A seller that was found cheating just now."""
        for peer in peers:
            if peer["condemned"] and peer["did"] not in told:
                told.add(peer["did"])
                self._console.print(
                    Panel(
                        f"The spot checks convict {peer['did']}:\nits tokens cannot come from the Q8_0 weights that it "
                        "offers. It gets no more orders, and what is disputed stays unpaid.",
                        title=f"{names.get(peer['did'], 'a seller')} condemned",
                        border_style="red",
                    )
                )

    def ending(self, figures: dict[str, Any]) -> None:
        """What it came to."""
        receipts, audits = figures["receipts"], figures["audits"]
        signed = f"{figures['orders']} orders, {receipts['both_signed']} receipts signed by both sides"
        lines = [f"{signed}: {receipts['paid']} paid, {receipts['disputed']} disputed"]
        for name, audit in audits.items():
            found = "condemned" if audit["condemned"] else "not condemned"
            lines.append(
                f"{name}: {audit['orders']} orders, {audit['tokens_checked']} tokens replayed, "
                f"{audit['odd_tokens']} odd, mean margin {audit['margin_mean']}: {found}"
            )
        lines.append(f"both sides' accounts agree: {figures['accounts']['balanced']}; journals: {figures['chain']}")
        style = "green" if figures["ok"] else "red"
        self._console.print(Panel("\n".join(lines), title="In the end", title_align="left", border_style=style))

    def goodbye(self, url: str) -> None:
        """How to go on with the owner's node."""
        self._console.print(f"\nYour node stays up at [bold]{url}/v1[/] until Ctrl-C. Try it from another terminal:\n")
        curl = (
            f"curl {url}/v1/chat/completions -H 'content-type: application/json' "
            """-d '{"model": "auto", "messages": [{"role": "user", "content": "What is a receipt?"}]}'"""
        )
        python = (
            "from openai import OpenAI\n"
            f'client = OpenAI(base_url="{url}/v1", api_key="local")\n'
            'print(client.chat.completions.create(model="auto", '
            'messages=[{"role": "user", "content": "What is a receipt?"}]).choices[0].message.content)'
        )
        self._console.print(curl, markup=False, soft_wrap=True)
        self._console.print()
        self._console.print(python, markup=False, soft_wrap=True)
