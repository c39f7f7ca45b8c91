"""How often something happened, and how long it took."""

from __future__ import annotations

import msgspec

__all__ = ["Tally"]


class Tally(msgspec.Struct):
    """Times, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """It happened once more."""
        self.count += 1
        self.ns += ns

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.count + other.count, self.ns + other.ns)

    def as_json(self) -> dict[str, int]:
        """As the protocol's statistics extension has it."""
        return {"count": self.count, "ns": self.ns}
