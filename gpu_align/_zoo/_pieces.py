"""What a zoo consists of: checkpoints, and files with stacks of models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Signature = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor of a model, sorted: what models of one family share."""

PLAN, SHARDS = "plan.json", "shards"
"""What is in the folder of an aligned zoo."""


@dataclass(frozen=True)
class Piece:
    """A checkpoint, or a safetensors file with a stack of models.

    Attributes:
        name: in the zoo: a path relative to its root.
        path: of the file, or of the folder of one checkpoint.
        run: the training run that it is a checkpoint of; None if it is of none.
        count: how many models there are.
        stacked: whether tensors have a leading axis of models, of which there may be one.
        prefix: of the names of weights in a stack; other tensors are facts about its models.
        files: tensor -> file, of a stack in several files.
        names: of the models of a stack; by default the name of the stack and their number.
        facts: what is known of it besides its weights.
    """

    name: str
    path: str
    run: str | None = None
    count: int = 1
    stacked: bool = False
    prefix: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def names_of(self, start: int, stop: int) -> list[str]:
        """Return the names of some of its models."""
        if not self.stacked:
            return [self.name]
        if self.names:
            return list(self.names[start:stop])
        return [f"{self.name}[{row}]" for row in range(start, stop)]

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value or name in ("name", "path")}


@dataclass(frozen=True)
class Span:
    """Some models of one piece.

    Attributes:
        piece: which, among those of a shard.
        start, stop: its models.
        follows: number of the span of a shard whose permutation these models get; None for their
            own.
    """

    piece: int
    start: int
    stop: int
    follows: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Shard:
    """Models of one family that are aligned, written and committed together.

    Attributes:
        number: of the shard.
        family: name of the family.
        pieces: those that it has models of.
        spans: the models.
    """

    number: int
    family: str
    pieces: tuple[Piece, ...]
    spans: tuple[Span, ...]

    @property
    def folder(self) -> str:
        """Name of the folder that holds it once it is done."""
        return f"{self.number:06d}"

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    def name_at(self, place: int) -> str:
        """Return the name of the piece that a model is of, by its place in the shard."""
        for span in self.spans:
            if place < len(span):
                return self.pieces[span.piece].name
            place -= len(span)
        raise IndexError(f"no model {place} beyond a shard of {len(self)}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "number": self.number,
            "family": self.family,
            "pieces": [piece.to_json() for piece in self.pieces],
            "spans": [[span.piece, span.start, span.stop, span.follows] for span in self.spans],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Read what `to_json` returns."""
        pieces = tuple(Piece(**piece) for piece in entry["pieces"])
        spans = tuple(Span(*span) for span in entry["spans"])
        return cls(entry["number"], entry["family"], pieces, spans)


@dataclass(frozen=True)
class Failure:
    """A model, or all models of a piece, that is not aligned.

    Attributes:
        kind: "damaged", "foreign", "unusable", "changed", "unsolved" or "lost".
        reason: a sentence that says what to mend.
    """

    kind: str
    reason: str
