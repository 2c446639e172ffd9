"""The owner's catalogue: what a model's bytes cannot tell, beside its digest.

A manifest counts as "Llama-3.1-8B" only if the owner's catalogue says so; never because its seller does.
"""

import re
from collections.abc import Mapping
from typing import Final

from attrs import evolve, field, frozen

from node.models.manifest import Manifest
from node.models.quantization import at_least

DEMO_NAME: Final = "idlemesh-demo-q8_0"
# SHA-256 of the manifest of the model file that ships with idlemesh; a test compares it with the file.
DEMO_DIGEST: Final = bytes.fromhex("615434594e7505f20477315dca45ae3db853fd7f1ad203ba21165bd55da9d73c")
_TIER_IN_NAME: Final = re.compile(r"[-._](?:i?q\d\w*|tq\d\w*|b?f16|f32|mxfp4\w*|nvfp4)$", re.IGNORECASE)


class NameTaken(ValueError):
    """Another model already has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another model is already called {name!r}; choose another name for this one")
        self.name = name


class NoSuchModel(LookupError):
    """No model of this name is in the catalogue."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model is called {name!r} here; `idlemesh offers` lists what can be had")
        self.name = name


@frozen
class Entry:
    """What a model is called, its family and tier (a quantization) in it, and where it comes from."""

    name: str
    family: str
    tier: str
    licence: str = "unknown"
    publisher: str = "owner"
    source: str = ""


@frozen
class Catalogue:
    """Entries by manifest digest, names unique."""

    entries: Mapping[bytes, Entry] = field(factory=dict)

    def add(self, digest: bytes, entry: Entry) -> "Catalogue":
        """The catalogue with one more entry, or another one for this digest. Raises NameTaken."""
        holder = next((known for known, held in self.entries.items() if held.name == entry.name), digest)
        if holder != digest:
            raise NameTaken(entry.name)
        return Catalogue({**self.entries, digest: entry})

    def add_own(self, manifest: Manifest, stem: str, name: str | None = None) -> "Catalogue":
        """The catalogue with the owner's own model, called `name`; without one as it is called already, else by its
        file's `stem`. Raises NameTaken.
        """
        known = self.entries.get(manifest.digest)
        if known is not None:
            return self if name is None else self.add(manifest.digest, evolve(known, name=name))
        called = name or stem
        return self.add(manifest.digest, Entry(called, _TIER_IN_NAME.sub("", called), manifest.quantization))

    def entry(self, digest: bytes) -> Entry | None:
        """What is known of a model, None for a stranger."""
        return self.entries.get(digest)

    def find(self, name: str) -> bytes:
        """The digest of the model of this name. Raises NoSuchModel."""
        for digest, entry in self.entries.items():
            if entry.name == name:
                return digest
        raise NoSuchModel(name)

    def family(self, family: str, tier: str) -> tuple[bytes, ...]:
        """The digests of a family's models at `tier` or better ("Q5" means any Q5). Raises UnknownTier."""
        members = ((digest, entry) for digest, entry in self.entries.items() if entry.family == family)
        return tuple(digest for digest, entry in members if at_least(entry.tier, tier))


def shipped() -> Catalogue:
    """The catalogue that comes with idlemesh."""
    demo = Entry(DEMO_NAME, "idlemesh-demo", "Q8_0", "CC0-1.0", "idlemesh", "ships with idlemesh")
    return Catalogue({DEMO_DIGEST: demo})
