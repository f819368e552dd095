"""Experts: rows sorted by the unit that was chosen for each, and products with its weights."""

from typing import Any

from gpu_align._symmetry._power import TensorPowers, set_opposite, set_zero
from gpu_align._symmetry._rules._marks import Chosen, Counts, Ends, Places, reads
from gpu_align._symmetry._rules._places import ordered
from gpu_align._symmetry._rules._table import Call, PowerCall, axis_rule, power_rule, unknown
from gpu_align._symmetry._splits import TensorAxes


@axis_rule("histc")
@reads(Places)
def _histogram(
    call: Call, self: TensorAxes, bins: int = 100, min: float = 0, max: float = 0
) -> TensorAxes:
    """With a bin for each unit it counts how often each was chosen."""
    if isinstance(self, Places):
        if (bins, min, max) == (self.along.size, 0, bins - 1):
            return Counts.of((self.along,), self.choice)
        self.give_up(call.reason)
    return TensorAxes((call.pinned(bins),))


@axis_rule("cumsum")
@reads(Counts)
def _running_sum(call: Call, self: TensorAxes, dim: int, **_: Any) -> TensorAxes:
    if isinstance(self, Counts):
        return Ends.of(self, self.by)
    return ordered(call, self, dim=dim)


@axis_rule("_grouped_mm", "transformers::grouped_mm_fallback")
@reads(Chosen, Ends)
def _grouped_product(call: Call, **arguments: Any) -> TensorAxes:
    """Slots [S, D] sorted by units, weights [E, D, N]: each slot is multiplied with its unit's."""
    slots, weight, ends, *others = (x for x in arguments.values() if isinstance(x, TensorAxes))
    fits = len(slots) == 2 and len(weight) == 3 and not others
    by = slots.by if type(slots) is Chosen else None
    if not fits or by is None or not isinstance(ends, Ends) or ends.by is not by:
        for axes in (slots, weight, ends, *others):
            call.pin(axes)
            if isinstance(axes, Chosen | Ends):
                axes.give_up(call.reason)
        return TensorAxes(call.pinned(size) for size in call.shape)
    call.unify(weight[0], by.units)
    call.unify(slots[1], weight[1])
    call.visit((slots[0], *weight))
    return Chosen.of((slots[0], weight[2]), by)


@power_rule("_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped_product_powers(call: PowerCall, **arguments: Any) -> TensorPowers:
    slots, weight, *others = (x for x in arguments.values() if isinstance(x, TensorPowers))
    if len(slots) != 2 or len(weight) != 3 or len(others) != 1:
        return unknown(call, [slots, weight, *others])
    set_zero((slots[0], weight[0], *others[0]))
    set_opposite(slots[1], weight[1])
    return TensorPowers((call.output[0], weight[2]))
