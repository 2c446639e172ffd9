"""What the tests of a node's services share; builders are in `tests.node.trading`."""

from hashlib import sha256

import pytest

from node.models.manifest import tokenizer_file
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.vocab import open_vocab
from node.ports import ManualClock
from tests.node.trading import DEMO, clock_at_noon


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The demo model's tokenizer, for ids to text; its renderer is never started."""
    return Tokenizer(open_vocab(DEMO), tokenizer_digest(), TemplateRenderer())


def tokenizer_digest() -> bytes:
    """The digest of the demo model's tokenizer."""
    return sha256(tokenizer_file(DEMO)).digest()


@pytest.fixture
def clock() -> ManualClock:
    return clock_at_noon()
