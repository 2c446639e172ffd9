"""Tries a stranger's tokenizer in a process of its own; run by `node.models.tokenizers`, not by people.

Arguments: sys.path as JSON, the file's path. Ends with 0 if llama.cpp loads the file and survives its use.
"""

import json
import sys
from pathlib import Path
from typing import Final

MAX_MEMORY: Final = 4 * 2**30  # bytes of address space
MAX_CPU: Final = 50  # seconds
# Each message is searched for all of them; models have up to a few hundred.
MAX_CONTROL: Final = 4_096
_SAMPLE: Final = (
    "Hello, \u00e4\u00f6\u00fc \u4f60\u597d \U0001f98a\n\t 0123456789 <|end|></s><unk>[INST] \ufffd\x00\x7f"
)


def main(path: Path) -> None:
    """Load the file and use every id once."""
    from node.models.vocab import open_vocab

    vocab = open_vocab(path)
    for token in range(vocab.size):
        vocab.piece(token), vocab.text(token)
    for special in (True, False):
        vocab.check(vocab.tokenize(_SAMPLE, parse_special=special, add_special=special))
    for token in (vocab.bos, vocab.eos):
        vocab.text(token)
    vocab.check([*vocab.eog, *vocab.control])
    if not vocab.takes_any_text:
        raise SystemExit("some texts would end the process")
    if len(vocab.control) > MAX_CONTROL:
        raise SystemExit(f"more than {MAX_CONTROL} control tokens")
    _ = vocab.chat_template
    vocab.close()


def _limit() -> None:
    try:
        import resource
    except ImportError:
        return
    for kind, wanted in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CPU, MAX_CPU)):
        _, most = resource.getrlimit(kind)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    _limit()
    main(Path(sys.argv[2]))
