"""What a checkpoint has seen of the puzzles it is asked about.

An encoder's own training on a puzzle's queries makes its score there one of memory; so does a TRM's
on queries. A TRM trains on the demonstrations of evaluation puzzles by design, and so does a
decoder: reported, not refused. A foreign file tells nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainable.errors import DataError

DECODER = "decoder_"
"""Prefix of the roles in which a checkpoint's pretrained decoder saw a puzzle."""


@dataclass(frozen=True)
class Exposure:
    """Ids of the asked puzzles by what was seen of them; None = unknown.

    `queries`, `demos`: in the checkpoint's own training. `decoder_queries`, `decoder_demos`: in
    that of the decoder it started from; empty where it started from none.
    """

    asked: int
    queries: tuple[str, ...] | None
    demos: tuple[str, ...] | None
    decoder_queries: tuple[str, ...] | None
    decoder_demos: tuple[str, ...] | None

    def refuse_seen(self, path: object) -> None:
        """Raise `DataError` if any asked puzzle was trained on with its queries."""
        if self.queries:
            raise DataError(
                f"{path} was trained on the queries of {len(self.queries)} of the {self.asked} "
                f"puzzles ({self.queries[0]} …): choose another --subset, or pass --allow-seen to "
                f"score what it has seen"
            )

    def lines(self) -> list[str]:
        """What to tell beside a score."""
        own = _line("own training", self.queries, self.demos, self.asked)
        decoder = _line("its decoder's", self.decoder_queries, self.decoder_demos, self.asked)
        started = self.decoder_queries is None or self.decoder_queries or self.decoder_demos
        return [own, decoder] if started else [own]

    def to_json(self) -> dict[str, Any]:
        """Counts; None = unknown."""
        names = ("queries", "demos", "decoder_queries", "decoder_demos")
        found = {name: getattr(self, name) for name in names}
        return {n: None if ids is None else len(ids) for n, ids in found.items()}


def exposure_to(
    asked: Collection[str], roles: Mapping[str, list[str]] | None, *, decoder: bool
) -> Exposure:
    """What was seen of the `asked` puzzles.

    Args:
        asked: puzzle ids.
        roles: task ids by role as a checkpoint records them, None for a foreign file.
        decoder: whether the checkpoint started from a pretrained decoder. One that records no role
            of it started from a foreign decoder: unknown.
    """
    if roles is None:
        return Exposure(len(asked), None, None, None, None)

    def seen(role: str) -> tuple[str, ...]:
        known = set(roles.get(role, ()))
        return tuple(name for name in asked if name in known)

    unknown = decoder and not any(role.startswith(DECODER) for role in roles)
    return Exposure(
        len(asked),
        seen("trained"),
        seen("trained_demos"),
        None if unknown else seen(f"{DECODER}trained"),
        None if unknown else seen(f"{DECODER}trained_demos"),
    )


def _line(
    whose: str, queries: tuple[str, ...] | None, demos: tuple[str, ...] | None, asked: int
) -> str:
    if queries is None or demos is None:
        return f"{whose}: unknown what it saw of these puzzles"
    return (
        f"{whose} saw the queries of {len(queries)} and the demonstrations alone of {len(demos)} "
        f"of these {asked} puzzles"
    )
