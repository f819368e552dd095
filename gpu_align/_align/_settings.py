"""What is the same for all networks of one call."""

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch._guards import active_fake_mode

from gpu_align._align._evidence import Evidence
from gpu_align._device import CPU, Engine, choose_engine
from gpu_align._errors import InputError
from gpu_align._problem import METRICS, Metric, as_metric
from gpu_align._search import SEARCHES, Budget, ProgressCallback, Search
from gpu_align._symmetry import PermutationSpec


@dataclass(frozen=True)
class Settings:
    """How networks are aligned.

    Attributes:
        search: how to look; None takes the portfolio that fits the problem.
        metric: what the distance is made of.
        engine: what to compute with.
        seed: of the search.
        budget: of steps or seconds; several batches share the seconds.
        progress: called after every step of the search.
        evidence: what counts beside the weights; None for the weights alone.
        prove: seconds for the proof of each source; None for no proof.
    """

    search: Search | None = None
    metric: Metric = METRICS["l2"]
    engine: Engine = CPU
    seed: int = 0
    budget: Budget | None = None
    progress: ProgressCallback | None = None
    evidence: Evidence | None = None
    prove: float | None = None

    @classmethod
    def of(
        cls,
        search: Search | str | None,
        metric: str | Metric,
        device: str | torch.device,
        seed: int,
        budget: Budget | None,
        progress: ProgressCallback | None,
        prove: float | None = None,
    ) -> "Settings":
        """Make them of what a user passes to `align`.

        Raises:
            InputError: one of them is something else, or tensors have no values where it is called;
            UnavailableError: see `choose_engine`.
        """
        if active_fake_mode() is not None:
            raise InputError(
                "tensors have no values within a FakeTensorMode, and align looks at them; call it "
                "outside of the mode"
            )
        if budget is not None and not isinstance(budget, Budget):
            raise InputError(
                f"expected a Budget or None, got budget={_shown(budget)}; write for instance "
                "budget=Budget(seconds=5) or budget=Budget(steps=5)"
            )
        if progress is not None and not callable(progress):
            raise InputError(
                f"expected a function that takes a Progress, or None, got progress="
                f"{_shown(progress)}; pass for instance progress=print"
            )
        rest = as_metric(metric), choose_engine(device), _seed(seed), budget, progress
        return cls(_search(search), *rest, prove=checked_seconds(prove))


def checked_seconds(prove: Any) -> float | None:
    """Return the seconds for a proof that a user asks for.

    Raises:
        InputError: they are no finite number above 0.
    """
    is_number = isinstance(prove, Real) and not isinstance(prove, bool)
    if prove is None or (is_number and 0 < prove < math.inf):
        return prove
    raise InputError(
        f"expected a finite number of seconds above 0 or None, got prove={_shown(prove)}; write "
        "prove=60, for instance"
    )


def checked_spec(spec: Any) -> PermutationSpec | None:
    """Return the spec that a user passes to `align`.

    Raises:
        InputError: it is something else.
    """
    if spec is None or isinstance(spec, PermutationSpec):
        return spec
    raise InputError(
        f"expected a PermutationSpec or None, got spec={_shown(spec)}; a file is read by "
        "PermutationSpec.from_json(path.read_text())"
    )


def _search(search: Any) -> Search | None:
    if search is None or isinstance(search, Search):
        return search
    if isinstance(search, str):
        if search in SEARCHES:
            entry = SEARCHES[search]
            if entry.needs_data:
                raise InputError(
                    f"search={search!r} needs a loss on data; pass "
                    f"search={entry.kind.__name__}(TaskLoss(module, data))"
                )
            if entry.needs_aligner:
                raise InputError(
                    f"search={search!r} needs an aligner; pass "
                    f"search={entry.kind.__name__}(gpu_align.learn.Aligner.load(path))"
                )
            return entry.make()
        raise InputError(
            f"expected a search among {', '.join(SEARCHES)}, or an object such as "
            f"CoordinateDescent(), got search={search!r}"
        )
    advice = "pass an object such as CoordinateDescent(), or a name such as 'descent'"
    if isinstance(search, type) and issubclass(search, Search):
        advice = f"make an object of the class: search={search.__name__}()"
    raise InputError(f"expected a search, its name or None, got search={_shown(search)}; {advice}")


def _seed(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise InputError(
            f"expected a whole number, got seed={_shown(seed)}; pass for instance seed=0: the same "
            "seed gives the same result"
        ) from None


def _shown(value: object) -> str:
    """Return a value in few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"an object of {type(value).__name__}"
