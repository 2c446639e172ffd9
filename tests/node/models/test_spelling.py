"""Ids to text and back, for servers that speak text alone."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.models.spelling import Misread, Spelling
from node.models.vocab import open_vocab
from tests.node.trading import DEMO

VOCAB = open_vocab(DEMO)
SPELLING = Spelling(VOCAB)
ORDINARY = [token for token in range(VOCAB.size) if token not in VOCAB.control | VOCAB.eog]


def text_of(ids: Sequence[int]) -> bytes:
    return b"".join(map(VOCAB.piece, ids))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
async def test_the_ids_of_an_answer_spell_it_and_steer_nothing(text: str) -> None:
    ids = await SPELLING.ids(text)

    assert text_of(ids) == text.encode()
    assert not (VOCAB.control | VOCAB.eog) & set(ids)


async def test_a_control_token_that_is_spelled_in_an_answer_is_text() -> None:
    spelled = VOCAB.text(min(VOCAB.control))

    assert not VOCAB.control & set(await SPELLING.ids(spelled))


async def test_text_that_is_one_token_is_that_token() -> None:
    for token in ORDINARY:
        raw = VOCAB.piece(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue  # a part of a character never comes alone
        (one,) = await SPELLING.ids(text) if text else (token,)
        assert VOCAB.piece(one) == raw


@given(st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=30))
async def test_the_text_of_a_prompt_holds_its_words_and_its_control_tokens(ids: list[int]) -> None:
    turn = min(VOCAB.control)
    prompt = [turn, *ids, turn]
    try:
        text = await SPELLING.prompt(prompt)
    except Misread:
        return  # the words spell a control token together

    control = VOCAB.text(turn)
    assert text == control + text_of(ids).decode("utf-8", "replace") + control


async def test_words_that_would_become_a_control_token_are_not_sent() -> None:
    words = await VOCAB.ids([(VOCAB.text(min(VOCAB.control)), False)])

    with pytest.raises(Misread):
        await SPELLING.prompt(words)


def test_an_answer_ends_with_an_id_of_the_vocabulary() -> None:
    assert SPELLING.end in VOCAB.eog


class SpaceFirst:
    """A vocabulary of letters whose tokenizer puts a space before every text, as SentencePiece does."""

    size = 28
    eog = control = frozenset({26})
    bos, eos, add_bos, add_eos, chat_template = 27, 26, True, False, None

    def piece(self, token: int) -> bytes:
        return b" " if token == 0 else b"" if token in (26, 27) else bytes([96 + token])

    def text(self, token: int) -> str:
        return "<s>" if token == 27 else "</s>" if token == 26 else self.piece(token).decode()

    def check(self, tokens: Sequence[int]) -> None:
        pass

    async def ids(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        return [ord(letter) - 96 if letter != " " else 0 for text, _ in parts for letter in " " + text]


async def test_what_a_tokenizer_adds_of_its_own_is_left_out() -> None:
    assert await Spelling(SpaceFirst()).ids("cab") == (3, 1, 2)


async def test_a_byte_that_no_token_has_is_left_out() -> None:
    assert await Spelling(SpaceFirst()).ids("c~b") == (3, 2)


async def test_the_token_that_servers_put_first_is_not_written() -> None:
    assert await Spelling(SpaceFirst()).prompt((27, 3, 1)) == "ca"
