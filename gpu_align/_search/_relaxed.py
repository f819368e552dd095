"""Doubly stochastic matrices: Sinkhorn scaling, starts, and rounding to permutations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._problem import Family, Hypotheses, Member, joined
from gpu_align._search._executor import Heartbeat, no_heartbeat
from gpu_align._search._run import Run
from gpu_align._search._scale import deviation


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Scale `exp(logits)` towards a doubly stochastic matrix, columns last.

    Rows, then columns, are shifted to a maximum of 0 first: afterwards every row and every column
    has an entry 1, so neither a sum underflows nor a scaling overflows.

    Args:
        logits: [b, n, n].
        iterations: pairs of a row and a column scaling.

    Returns:
        [b, n, n], columns sum to 1.

    Source: Sinkhorn (1964); as used by Cuturi (NeurIPS 2013).
    """
    if not logits.requires_grad:
        return _scale(logits.clone(), iterations)
    logits = logits - logits.amax(2, keepdim=True)
    kernel = (logits - logits.amax(1, keepdim=True)).exp_()
    column = torch.ones_like(kernel[:, :1])
    for _ in range(iterations):
        row = torch.bmm(kernel, column.mT).reciprocal_()
        column = torch.bmm(row.mT, kernel).reciprocal_()
    return kernel * row * column


def _scale(logits: Tensor, iterations: int) -> Tensor:
    """Do what `sinkhorn` does in place: most of its time is that of small operations."""
    logits.sub_(logits.amax(2, keepdim=True))
    kernel = logits.sub_(logits.amax(1, keepdim=True)).exp_()
    row, column = torch.empty_like(kernel[:, :, :1]), torch.ones_like(kernel[:, :1])
    by_row, by_column = row.mT, column.mT
    for _ in range(iterations):
        torch.bmm(kernel, by_column, out=row).reciprocal_()
        torch.bmm(by_row, kernel, out=column).reciprocal_()
    return kernel.mul_(row).mul_(column)


def soften(
    family: Family,
    similarity: Mapping[str, Tensor],
    temperature: Tensor,
    iterations: int,
) -> dict[str, Tensor]:
    """Return the doubly stochastic matrices of a family at a temperature.

    Inside each pair of root units a child's block is scaled, and the root by the values of its
    pairs then. A unit that may be negated weighs both signs: its plain matrix has the sum of their
    weights, `cosh`, its signed one the difference, `sinh`.

    Args:
        family: what is scaled together.
        similarity: variable -> [b, n, n].
        temperature: [], in units of the standard deviation of each group's unit gains.
        iterations: Sinkhorn iterations.

    Returns:
        variable -> [b, n, n].
    """
    value, blocks, units = family.root_gains(similarity), {}, {}
    for child in family.children:
        unit = temperature * _spread(child.unit_gains(similarity))
        logits = family.blocks(_logits(child, similarity, unit))
        inner = _scale(logits.flatten(0, 2), iterations).reshape(logits.shape)
        expected = family.blocks(_expected(child, similarity, unit))
        value = value + (expected * inner).sum((3, 4))
        blocks[child.group], units[child.group] = inner, unit
    if family.fixed:
        root, soft = torch.ones_like(value), {}
    else:
        whole = {**similarity, family.root.group: value}
        units[family.root.group] = temperature * _spread(family.root.unit_gains(whole))
        root = _scale(_logits(family.root, whole, units[family.root.group]), iterations)
        soft = {family.root.group: root}
    for child in family.children:
        soft[child.group] = family.joined(blocks[child.group] * root[..., None, None])
    for member in family.members:
        for variable in member.variables[1:]:
            lean = torch.tanh(similarity[variable] / units[member.group])
            soft[variable] = soft[member.group] * lean
    return soft


def _spread(unit_gains: Tensor) -> Tensor:
    """Return the standard deviation of unit gains, [b, 1, 1]."""
    # Where all units are alike, the spread is rounding noise and must not be blown up.
    largest = torch.maximum(unit_gains.amax((1, 2)), -unit_gains.amin((1, 2)))
    floor = 1e-6 * largest + torch.finfo(unit_gains.dtype).tiny
    return torch.maximum(deviation(unit_gains), floor)[:, None, None]


def _logits(member: Member, similarity: Mapping[str, Tensor], unit: Tensor) -> Tensor:
    """Return the logits of a member's plain matrix, [b, n, n]."""
    logits = similarity[member.group] / unit
    for variable in member.variables[1:]:
        size = (similarity[variable] / unit).abs()
        logits = logits + size + torch.log1p(torch.exp(-2 * size))
    return logits


def _expected(member: Member, similarity: Mapping[str, Tensor], unit: Tensor) -> Tensor:
    """Return the value of each pair of units with its signs at this temperature, [b, n, n]."""
    value = similarity[member.group]
    for variable in member.variables[1:]:
        value = value + similarity[variable] * torch.tanh(similarity[variable] / unit)
    return value


def random_soft(run: Run, family: Family, noise: Tensor, owners: Tensor) -> dict[str, Tensor]:
    """Return the barycentre of a family with noise, variable -> [b, n, n].

    Args:
        run: the running search.
        family: what is drawn.
        noise: [b], standard deviation of the logits; 0 is the barycentre itself.
        owners: int64 [b], whose noise it is.
    """
    draws = {}
    for variable in family.variables:
        size = run.problem.sizes[variable]
        draws[variable] = run.normal(owners, size, size).mul_(noise[:, None, None])
    return soft_of_logits(family, draws, 20)


def soft_of_logits(
    family: Family, logits: Mapping[str, Tensor], iterations: int
) -> dict[str, Tensor]:
    """Return the doubly stochastic matrices of a family, differentiable, variable -> [b, n, n].

    Args:
        family: what is scaled together: a child's blocks inside each pair of root units.
        logits: variable -> [b, n, n]; those of a signed matrix are of the signs.
        iterations: Sinkhorn iterations.
    """
    soft = {}
    if not family.fixed:
        soft[family.root.group] = sinkhorn(logits[family.root.group], iterations)
    for child in family.children:
        blocks = family.blocks(logits[child.group])
        inner = sinkhorn(blocks.flatten(0, 2), iterations).reshape(blocks.shape)
        root = 1 if family.fixed else soft[family.root.group][..., None, None]
        soft[child.group] = family.joined(inner * root)
    for member in family.members:
        for variable in member.variables[1:]:
            soft[variable] = soft[member.group] * torch.tanh(logits[variable])
    return soft


def soft_starts(run: Run, owners: Tensor, noise: float, *, exact_first: bool) -> dict[str, Tensor]:
    """Return the barycentre with noise for each model, variable -> [m * k, n, n].

    Args:
        run: the running search.
        owners: int64 [k], the numbers of the starts, whose random numbers they get.
        noise: standard deviation of the logits.
        exact_first: whether start 0 is the barycentre itself.
    """
    scale = torch.full(owners.shape, noise, dtype=run.problem.dtype, device=owners.device)
    if exact_first:
        scale = scale.masked_fill(owners == 0, 0)
    soft: dict[str, Tensor] = {}
    for done, family in enumerate(run.problem.families.values()):
        run.heartbeat(f"start, group {done + 1} of {len(run.problem.families)}")
        for variable, drawn in random_soft(run, family, scale, owners).items():
            soft[variable] = drawn.repeat(run.problem.models, 1, 1)
    return soft


def to_hypotheses(run: Run, soft: Mapping[str, Tensor], model: Tensor) -> Hypotheses:
    """Round doubly stochastic matrices to the nearest permutations, family by family."""

    def rounded(part: slice, heartbeat: Heartbeat) -> Hypotheses:
        perms: dict[str, Tensor] = {}
        for family in run.problem.families.values():
            perms |= family.assign({m: soft[m][part] for m in family.variables}, run.match)
        return run.problem.hypotheses(perms, model[part])

    return joined(run.executor.in_parts(len(model), rounded, no_heartbeat))
