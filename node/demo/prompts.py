"""What the tour asks: stories, in which there is real variety and so something to tell the weights by."""

from typing import Final

_ASK: Final = ("Tell me a story about a {}.", "Write a story about a {}.", "story: {}")
_WHO: Final = (
    "fox", "owl", "hedgehog", "robot", "gardener", "sailor", "baker", "dragon",
    "mouse", "clockmaker", "crow", "bear", "girl", "lighthouse keeper", "snail", "wizard",
)  # fmt: skip


def stories(count: int) -> list[str]:
    """So many different prompts, at most 48."""
    return [ask.format(who) for ask in _ASK for who in _WHO][:count]
