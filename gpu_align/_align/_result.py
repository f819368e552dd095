"""AlignmentResult: the answer and everything that is known about it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, NoReturn

from torch import Tensor

from gpu_align._align import _summary
from gpu_align._align._certificate import CostMatrix, GroupReport, Inside
from gpu_align._checkpoint import atomic_write
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._proof import ProofRecord
from gpu_align._search import Progress
from gpu_align._status import Status
from gpu_align._symmetry import PRESERVED, Comparison, Outline, Permutation

SCHEMA = "gpu-align/result/1"
PICTURED = 8
"""Most models of one call whose cost matrices are kept."""


@dataclass(frozen=True)
class AlphaTrial:
    """An alignment that was tried to choose how much activations count.

    Attributes:
        alpha: how much they counted beside the weights; 0 for the weights alone.
        loss: of the midpoint of the target and the aligned source on data that are held back, with
            batch norms re-estimated; None if it is not finite.
        distance: squared distance after alignment.
    """

    alpha: float
    loss: float | None
    distance: float


@dataclass(frozen=True, kw_only=True, repr=False)
class ResultRecord:
    """What is known about an answer but for its tensors: what a file keeps and a page shows.

    Attributes are those of `AlignmentResult`; the defaults stand for what a file does not say.
    """

    metric: str = ""
    distance: float
    distance_before: float
    lower_bound: float = math.nan
    function_difference: float | None = None
    function_limit: float = PRESERVED
    function_note: str = "not checked"
    search: str = ""
    seconds: float = math.nan
    assignments: int | None = None
    seed: int | None = None
    device: str = ""
    log10_symmetries: float = math.nan
    origin: str = ""
    batch_size: int = 1
    status: Status | None = None
    groups: tuple[GroupReport, ...] = ()
    outline: Outline | None = None
    history: tuple[Progress, ...] = ()
    cost_matrix: CostMatrix | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    studies: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    evidence: str = "weights"
    alpha: float | None = None
    alphas: tuple[AlphaTrial, ...] = ()
    proof: ProofRecord | None = None
    shifted: int | None = None

    def __repr__(self) -> str:
        return _summary.one_line(self)

    def _repr_html_(self) -> str:
        return _summary.html(self)

    def summary(self) -> str:
        """Return what is known in a few lines of text, for `print`."""
        return _summary.text(_summary.rows(self))

    @property
    def comparison(self) -> Comparison | None:
        """How far the outputs are apart; None if they were not compared."""
        if self.function_difference is None:
            return None
        return Comparison(self.function_difference, self.function_limit)

    @property
    def function_preserved(self) -> bool | None:
        """Whether the outputs agree to `function_limit`; None if they were not compared."""
        return None if self.comparison is None else self.comparison.is_preserved

    def to_json(self) -> dict[str, Any]:
        """Return everything but tensors and index vectors as plain JSON values."""
        values = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(ResultRecord)}
        derived = {
            "schema": SCHEMA,
            "function_preserved": self.function_preserved,
            "status_note": _summary.status_in_words(self) or None,
        }
        for name in ("proof", "shifted", "alphas"):
            if values[name] in (None, []):
                del values[name]
        return derived | values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ResultRecord":
        """Read the form written by `to_json`, or by an earlier release, which says less.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it has another form.
        """
        names = {entry.name for entry in fields(ResultRecord)}
        values = {name: data[name] for name in names if data.get(name) is not None}
        if data.get("function_preserved") is False:
            values.setdefault("function_difference", math.inf)
        return ResultRecord(
            **{name: _READERS.get(name, _as_it_is)(value) for name, value in values.items()}
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class AlignmentResult(ResultRecord):
    """The permutation found, its distances and its certificate.

    Attributes:
        permutation: what reorders the source's units.
        state_dict: the source, reordered.
        metric: name of the metric of all distances.
        distance: squared distance after alignment, float64.
        distance_before: squared distance of source and target as given.
        lower_bound: no permutation has a smaller distance (may be loose).
        groups: one report per group, with the duality gap of its assignment.
        outline: the groups over the network, for a picture.
        function_difference: largest relative difference of the outputs of the source before and
            after, in float64 on the example inputs; None if it could not be checked.
        function_limit: the largest such difference that counts as the same function: 1e-9, more
            where an op has no kernel for float64.
        function_note: how the function was checked, or why not.
        cost_matrix: costs of the group that gained most, for a picture; None without groups, and
            where more than `PICTURED` models were aligned in one call.
        history: progress after every step of the search, for all models of the batch together.
        search: which search found the best permutation.
        status: how the search ended.
        seconds: time of the search, for all models of the batch together.
        assignments: number of assignment problems solved, for all models of the batch together.
        seed: seed of the search.
        device: what it ran on, and why.
        versions: of the libraries involved.
        log10_symmetries: log10 of the number of permutations that there are.
        origin: where the spec comes from.
        studies: further measurements for the report, such as the beam-width study.
        batch_size: number of models that were aligned in one batch, this one included; less than
            the number of sources where these did not fit the memory together.
        ok: True; see `AlignmentFailure`.
        index: place of the source among several, 0 for a single one.
        name: of the source in a mapping, else its path, None if it was not a file.
        splits: what of the search did not fit into memory at once -> in what parts it was computed.
        evidence: what told which units are alike: "weights", "activations" or "both"; distances,
            bounds and gaps are those of the weights all the same.
        alpha: how much activations counted beside the weights; None if they did not.
        alphas: what was tried to choose alpha; empty where it was given.
        proof: a `Proof` where one was asked for; a status PROVED_OPTIMAL rests on it.
        shifted: how many units have their phase shifted; None where phases stay as they are. The
            lower bound is over all phases, the groups' gaps are with these.
    """

    ok: ClassVar[Literal[True]] = True

    permutation: Permutation
    state_dict: Mapping[str, Tensor]
    assignments: int
    seed: int
    status: Status
    index: int = 0
    name: str | None = None

    def unwrap(self) -> "AlignmentResult":
        """Return this result; an `AlignmentFailure` raises its error instead."""
        return self

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, from which `gpu-align report` makes its page.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_report(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML page with figures, as `gpu_align.write_report` does.

        Raises:
            InputError: the file cannot be written.
        """
        import gpu_align  # the page is made above this room, which does not know who makes it

        gpu_align.write_report(self, path)


@dataclass(frozen=True)
class AlignmentFailure:
    """Stands in the place of a result for a source that could not be aligned; others were.

    Attributes:
        index: place of the source among the others.
        name: of the source in a mapping, else its path, None if it was not a file.
        error: what `unwrap` raises; its message says what to mend.
        status: UNUSABLE for a source that cannot be read, does not fit the spec or is not finite,
            INTERRUPTED for one that was not begun, else why its assignments could not be solved.
        ok: False; True for an `AlignmentResult`.
    """

    ok: ClassVar[Literal[False]] = False

    index: int
    name: str | None
    error: GpuAlignError
    status: Status

    def __repr__(self) -> str:
        reason = (str(self.error) or "no reason").splitlines()[0]
        return (
            f"AlignmentFailure(index={self.index}, name={self.name!r}, status={self.status.name}, "
            f"error={type(self.error).__name__}: {reason[:200]})"
        )

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


def _plain(value: Any) -> Any:
    """Return a value that JSON has: an infinite difference of outputs becomes null."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Status():
            return str(value)
        case ProofRecord():
            return value.to_json()
        case Progress():  # the history has whole steps only
            return {name: entry for name, entry in value.to_json().items() if name != "part"}
        case Mapping():
            return dict(value)
        case tuple():
            return [_plain(entry) for entry in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _as_it_is(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    return _expected(value, str, is_one=isinstance(value, str))


def _whole(value: Any) -> int:
    return _expected(value, int, is_one=type(value) is int)


def _number(value: Any) -> float:
    return float(_expected(value, float, is_one=type(value) in (int, float)))


def _expected(value: Any, kind: type, *, is_one: bool) -> Any:
    if not is_one:
        raise TypeError(f"expected a value of {kind.__name__}, got {type(value).__name__}")
    return value


def _read_group(entry: Mapping[str, Any]) -> GroupReport:
    """Read a group; results of earlier releases do not say what is inside it."""
    inside = tuple(Inside(**child) for child in entry.get("inside") or ())
    group = GroupReport(**{**entry, "inside": inside})
    parts: tuple[GroupReport | Inside, ...] = (group, *inside)
    for part in parts:
        _text(part.name)
        _whole(part.units)
        _whole(part.moved)
    for name in ("distance_before", "distance_after", "primal", "dual", "gap"):
        _number(getattr(group, name))
    return group


def _read_alpha(entry: Mapping[str, Any]) -> AlphaTrial:
    trial = AlphaTrial(**entry)
    for number in (trial.alpha, trial.distance):
        _number(number)
    if trial.loss is not None:
        _number(trial.loss)
    return trial


def _read_step(entry: Mapping[str, Any]) -> Progress:
    step = Progress.from_json(entry)
    _text(step.stage)
    _whole(step.step)
    for number in (step.best_distance, step.seconds):
        _number(number)
    return step


def _read_matrix(entry: Mapping[str, Any]) -> CostMatrix:
    matrix = CostMatrix(**entry)
    side = len(matrix.before)
    for rows in (matrix.before, matrix.after):
        if {len(rows), *(len(row) for row in rows)} != {side}:
            raise ValueError(f"the cost matrix of {matrix.group!r} is not square")
        for row in rows:
            for cost in row:
                _number(cost)
    return matrix


_NUMBERS = (
    "distance",
    "distance_before",
    "lower_bound",
    "function_difference",
    "function_limit",
    "seconds",
    "alpha",
)
_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys((*_NUMBERS, "log10_symmetries"), _number),
    **dict.fromkeys(("metric", "function_note", "search", "device", "origin", "evidence"), _text),
    **dict.fromkeys(("assignments", "seed", "batch_size", "shifted"), _whole),
    "status": lambda name: Status[name.upper()],
    "groups": lambda entries: tuple(map(_read_group, entries)),
    "outline": Outline.from_json,
    "history": lambda entries: tuple(map(_read_step, entries)),
    "cost_matrix": _read_matrix,
    "proof": ProofRecord.from_json,
    "alphas": lambda entries: tuple(map(_read_alpha, entries)),
    **dict.fromkeys(("versions", "studies", "splits"), lambda entries: dict(entries.items())),
}


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file written by `AlignmentResult.save_json`.

    Raises:
        InputError: the file cannot be read or is not a result.
    """
    advice = "expected a file written by `gpu-align align --json-file`"
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        # Text that is not UTF-8 and numbers of thousands of digits are a ValueError.
        raise InputError(f"cannot read {os.fspath(path)!r}: {error}; {advice}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"{os.fspath(path)!r} is not a result ({SCHEMA}); {advice}")
    return data
