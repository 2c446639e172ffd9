"""A stranger's tokenizer in a process of its own; run by `node.models.isolated`, not by people.

A file may be well-formed and still make llama.cpp abort its process, at loading or at some text. So it is loaded
here, every id is used once, and the texts of others' conversations are tokenized here too.

Arguments: sys.path as JSON, the file's path. Frames as of `template_worker`: first the vocabulary, or `{"unfit"}` and
why; then requests `{"parts": [[text, whether it may hold control tokens], ...]}`, each answered with `{"ids"}`.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any, Final

MAX_MEMORY: Final = 4 * 2**30  # bytes of address space
MAX_CPU: Final = 50  # seconds, for loading and for each text
# Each message is searched for all of them; models have up to a few hundred.
MAX_CONTROL: Final = 4_096
_SAMPLE: Final = (
    "Hello, \u00e4\u00f6\u00fc \u4f60\u597d \U0001f98a\n\t 0123456789 <|end|></s><unk>[INST] \ufffd\x00\x7f"
)


def main(path: Path) -> None:
    """Load the file, tell what is in it, and tokenize until stdin ends."""
    from node.models.template_worker import limit_time, read_frame, write_frame
    from node.models.vocab import Vocab, open_vocab

    def table(vocab: Vocab) -> dict[str, Any]:
        for special in (True, False):
            vocab.check(vocab.tokenize(_SAMPLE, parse_special=special, add_special=special))
        if not vocab.takes_any_text:
            return {"unfit": "some texts would end the process"}
        if len(vocab.control) > MAX_CONTROL:
            return {"unfit": f"more than {MAX_CONTROL} control tokens"}
        return {
            "pieces": [base64.b64encode(vocab.piece(token)).decode() for token in range(vocab.size)],
            "texts": {str(token): vocab.text(token) for token in {*vocab.control, vocab.bos, vocab.eos}},
            "control": sorted(vocab.control),
            "eog": sorted(vocab.eog),
            "bos": vocab.bos,
            "eos": vocab.eos,
            "add_bos": vocab.add_bos,
            "add_eos": vocab.add_eos,
            "chat_template": vocab.chat_template,
        }

    answers = sys.stdout.buffer
    vocab = open_vocab(path)
    write_frame(answers, table(vocab))
    while (request := read_frame(sys.stdin.buffer)) is not None:
        limit_time(MAX_CPU)
        ids = [i for text, special in request["parts"] for i in vocab.tokenize(text, parse_special=special)]
        write_frame(answers, {"ids": ids})


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return
    for kind, wanted in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CPU, MAX_CPU)):
        _, most = resource.getrlimit(kind)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        try:
            resource.setrlimit(kind, (limit, most))
        except (ValueError, OSError):
            continue


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    _limit_memory()
    main(Path(sys.argv[2]))
