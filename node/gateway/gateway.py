"""The gateway: this machine first, then the best peer, then the best that is left, and never a silent change."""

from collections.abc import Sequence

from node.gateway.answer import Answer
from node.gateway.attempt import Attempt
from node.gateway.embedding import Embedded, embed
from node.gateway.question import Policy, Question, UnknownModel
from node.gateway.supply import Supply
from node.ports import Entropy


class Gateway:
    """Answers questions with what this machine and its peers have, by the owner's policy."""

    def __init__(self, supply: Supply, entropy: Entropy, policy: Policy) -> None:
        self._supply = supply
        self._entropy = entropy
        self._policy = policy

    def models(self) -> list[tuple[str, str]]:
        """The names that can be asked for, each with who has it: `local` or a seller's did."""
        return self._supply.models()

    def name_of(self, model: bytes) -> str:
        """What the owner calls a model."""
        return self._supply.name_of(model)

    async def answer(self, question: Question) -> Answer:
        """Find who answers, and begin.

        Raises UnknownModel, Unservable, ContextExceeded, EngineError, TemplateError.
        """
        models = self._supply.wished(question.model)
        if models is not None and not models and not question.may_degrade:
            raise UnknownModel(question.model)
        seed = int.from_bytes(self._entropy.bytes(8), "little") if question.seed is None else question.seed
        return await Attempt(self._supply, self._policy, question, models, seed).run()

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        """The vectors of texts or token ids, computed here.

        Raises UnknownModel, Unservable, ContextExceeded, TooManyTokens, TemplateError, EngineError.
        """
        return await embed(self._supply, model, inputs)
