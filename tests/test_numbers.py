"""Ops that number places and look up by numbers: groups by hand, functions preserved."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from marks import every, slow
from networks import Graph, randomised
from symmetry_cases import (
    Case,
    Sizes,
    assert_case,
    assert_groups,
    assert_random_permutations_preserve,
    linear_between,
    parameter,
)
from torch import Tensor, nn

from gpu_align import discover

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])
"""Of a graph of 5 nodes: from where and to where."""


def mixture(route: Callable[..., Tensor], sizes: Sizes | None = None) -> Case:
    """4 experts of 3 hidden units for 5 units, of which 2 are routed to; rows share them."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.embed(x)
        return s.head(h + route(s, h, s.router(h).softmax(-1)))

    return Case(
        lambda: Graph(
            forward,
            embed=nn.Linear(3, 5),
            router=nn.Linear(5, 4),
            up=parameter(4, 3, 5),
            down=parameter(4, 5, 3),
            head=nn.Linear(5, 2),
        ),
        (6, 3),
        sizes or [5, 4, (3, 1)],
    )


def dense(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """All experts, the gates of most of them 0."""
    values, chosen = gates.topk(2, -1)
    sparse = torch.zeros_like(gates).scatter(-1, chosen, values)
    hidden = torch.einsum("bd,efd->bef", h, s.up).relu()
    return (torch.einsum("bef,edf->bed", hidden, s.down) * sparse[..., None]).sum(1)


def batched(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """The weights of the chosen experts looked up for each row."""
    values, chosen = gates.topk(2, -1)
    chosen = chosen.reshape(-1)
    rows = h.repeat_interleave(2, 0)[..., None]
    hidden = torch.bmm(s.up[chosen], rows).squeeze(-1).relu()
    out = torch.bmm(s.down[chosen], hidden[..., None]).squeeze(-1)
    return (out * values.reshape(-1, 1)).view(-1, 2, h.shape[-1]).sum(1)


def one_hot(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """A mask from the numbers, with a class too many."""
    best = gates.argmax(-1)
    mask = F.one_hot(best, 5)[:, :4].to(h.dtype)
    hidden = torch.einsum("bd,efd->bef", h, s.up).relu()
    return torch.einsum("bef,edf,be->bd", hidden, s.down, gates * mask)


def compared(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """A mask by comparing, with a number too many."""
    mask = (gates.argmax(-1)[:, None] == torch.arange(5))[:, :4].to(h.dtype)
    hidden = torch.einsum("bd,efd->bef", h, s.up).relu()
    return torch.einsum("bef,edf,be->bd", hidden, s.down, gates * mask)


def sorted_rows(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """Rows in the order of their experts, brought back in the end."""
    best = gates.argmax(-1)
    numbers, order = best.sort()
    rows = h[order]
    hidden = torch.bmm(s.up[numbers], rows[..., None]).relu()
    out = torch.bmm(s.down[numbers], hidden).squeeze(-1) * gates.amax(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return out[back]


def sorted_and_added(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """Rows in the order of their experts, added where they belong."""
    numbers, order = gates.argmax(-1).sort()
    hidden = torch.bmm(s.up[numbers], h[order][..., None]).relu()
    out = torch.bmm(s.down[numbers], hidden).squeeze(-1)
    return torch.zeros_like(h).index_add(0, order, out)


def limited_groups(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """Only the experts of the best of two groups."""
    scores = gates.view(-1, 2, 2)
    group = scores.topk(2, -1)[0].sum(-1).topk(1, -1)[1]
    mask = torch.zeros(len(h), 2).scatter(1, group, 1.0)
    gates = gates * mask.unsqueeze(-1).expand(-1, 2, 2).reshape(-1, 4)
    return dense(s, h, gates)


def left_sorted(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """Rows stay in the order of their experts: that is the experts' own order."""
    numbers, order = gates.argmax(-1).sort()
    hidden = torch.bmm(s.up[numbers], h[order][..., None]).relu()
    return torch.bmm(s.down[numbers], hidden).squeeze(-1)


def sorted_by_rank(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """A running sum goes through the rows in the order of their experts."""
    numbers, order = gates.argmax(-1).sort()
    out = torch.bmm(s.down[numbers], torch.bmm(s.up[numbers], h[order][..., None])).squeeze(-1)
    return torch.zeros_like(h).index_add(0, order, out.cumsum(0))


def numbered_weights(s: nn.Module, h: Tensor, gates: Tensor) -> Tensor:
    """The number of an expert is a factor."""
    best = gates.argmax(-1)
    hidden = torch.bmm(s.up[best], h[..., None]).relu()
    return torch.bmm(s.down[best], hidden).squeeze(-1) * best[:, None]


def quantised(s: nn.Module, x: Tensor) -> Tensor:
    """Each row is replaced by the nearest entry of a code book."""
    h = s.first(x)
    return s.head(F.embedding(torch.cdist(h, s.codes).argmin(-1), s.codes))


CASES = {
    "dense": mixture(dense),
    "batched": mixture(batched),
    "one_hot": mixture(one_hot),
    "compared": mixture(compared),
    "sorted": mixture(sorted_rows),
    "sorted_and_added": mixture(sorted_and_added),
    # Three levels: two are inside the slowest.
    "limited_groups": mixture(limited_groups, [5, 2, (2, 1), (3, 1)]),
    "code_book": Case(
        lambda: Graph(
            quantised, first=nn.Linear(3, 4), codes=parameter(6, 4), head=nn.Linear(4, 2)
        ),
        (5, 3),
        [4, 6],
    ),
    # The largest units only; the order of values by size is no order of units.
    "largest_units": linear_between(
        lambda h: h * (h >= h.topk(2, -1).values[..., -1:]), [4]
    ),
    "sum_of_largest": linear_between(lambda h: h * h.topk(2, -1).values.sum(-1, True), [4]),
    "ranks": linear_between(lambda h: h.sort(-1).values, [4]),
    "sorted_twice": linear_between(lambda h: h.gather(1, h.argsort(1)).cumsum(1), [4]),
    "median": linear_between(lambda h: h - h.median(1, keepdim=True).values, [4]),
    "nanmedian": linear_between(lambda h: h - h.nanmedian(1, keepdim=True).values, [4]),
    "median_of_all": linear_between(lambda h: h - h.median(), [4]),
    "kth_value": linear_between(lambda h: h - h.kthvalue(2, 1, keepdim=True).values, [4]),
    "straight_through": linear_between(lambda h: h * F.one_hot(h.argmax(-1), 4), [4]),
    "taken_where_largest": linear_between(
        lambda h: h.sin() * h.sin().gather(1, h.argmax(1, keepdim=True)), [4]
    ),
    "largest_set_to_0": linear_between(lambda h: h.scatter(1, h.argmax(1, keepdim=True), 0.0), [4]),
    "listed_neighbours": linear_between(lambda h: h[:, [0, 1, 2, 3]].sin(), [4]),
    "listed_halves": linear_between(lambda h: h[:, [2, 3, 0, 1]].sin(), [2, 2]),
    "listed_halves_meet": linear_between(lambda h: h[:, [2, 3, 0, 1]] * h, [2]),
    "listed_from_the_end": linear_between(lambda h: h[:, [-3, -2, -1]], [3], out=3),
    "listed_one_by_one": linear_between(lambda h: h[:, [3, 1, 0]], [], out=3),
    "listed_twice": linear_between(lambda h: h[:, [0, 1, 0, 1]], []),
    "numbers_as_values": linear_between(lambda h: h + h.argsort(1), []),
    "numbers_written": linear_between(
        lambda h: torch.zeros_like(h).scatter_(1, torch.arange(4).expand(2, 4), h.sin()), []
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", every(2, CASES))
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


@pytest.mark.parametrize("route", [left_sorted, sorted_by_rank, numbered_weights])
def test_experts_whose_order_is_seen_stay_in_it(route: Callable[..., Tensor]) -> None:
    case = mixture(route)
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs)
    assert 4 not in {group.size for group in spec.groups.values() if not group.fixed}
    reasons = {pin.axis: pin.reason for pin in spec.pins if pin.tensor == "router.weight"}
    assert "of these units" in reasons[0] or "sorted by these units" in reasons[0]
    assert_random_permutations_preserve(spec, model, inputs)


def to_nodes(kind: str, h: Tensor, edges: Tensor) -> Tensor:
    """Sum, or otherwise join, what comes along the edges."""
    along, wide = h[edges[0]], edges[1][:, None].expand(-1, h.shape[1])
    zeros = torch.zeros_like(h)
    match kind:
        case "index_add":
            return zeros.index_add(0, edges[1], along)
        case "index_add_":
            return h.new_zeros(h.shape).index_add_(0, edges[1], along)
        case "index_select":
            return zeros.index_add(0, edges[1], h.index_select(0, edges[0]))
        case "index_copy":
            return zeros.index_copy(0, edges[1][:4], along[:4])
        case "index_reduce":
            return zeros.index_reduce(0, edges[1], along, "amax")
        case "index_put":
            return zeros.index_put((edges[1],), along, accumulate=True)
        case "scatter_add":
            return zeros.scatter_add_(0, wide, along)
        case "scatter":
            return zeros.scatter(0, wide[:4], along[:4])
        case "chosen_edges":
            chosen = edges[:, edges[0] != edges[1] - 1]
            return zeros.index_add(0, chosen[1], h[chosen[0]])
        case _:
            return zeros.scatter_reduce(0, wide, along, kind)


TO_NODES = {
    "index_add": "sc",
    "index_add_": "sc",
    "index_select": "sc",
    "index_copy": "sc",
    "index_reduce": "c",
    "index_put": "",
    "scatter_add": "sc",
    "scatter": "sc",
    "sum": "sc",
    "mean": "sc",
    "amax": "c",
    "prod": "",
    "chosen_edges": "sc",
}
"""What nodes get from edges -> the gauge that is left: signs, scales."""


@pytest.mark.parametrize("kind", slow(TO_NODES, but=list(TO_NODES)[::2]))
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_graph_networks(kind: str) -> None:
    def forward(s: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
        return s.head(to_nodes(kind, s.second(to_nodes(kind, s.first(x), edges).tanh()), edges))

    model = randomised(
        Graph(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 5), head=nn.Linear(5, 2))
    )
    inputs = (torch.randn(5, 3, dtype=torch.float64), EDGES)
    spec = discover(model, inputs)
    assert_groups(spec, [4, 5])
    assert_random_permutations_preserve(spec, model, inputs)
    last = list(spec.groups.values())[-1]
    assert "s" * last.signed + "c" * last.scaled == TO_NODES[kind]


def test_places_under_a_mask_are_as_many_as_data_say() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.first(x)
        return s.head(s.second(h[x[..., 0] > 0]).relu().sum(0) + h.relu().sum((0, 1)))

    model = randomised(
        Graph(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 4), head=nn.Linear(4, 2))
    )
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    assert_groups(spec, [4])
    assert_random_permutations_preserve(spec, model, inputs)


@pytest.mark.parametrize("shape", [(2, -1, 4), (-1, 2, 4)])
def test_places_that_data_decide_are_split(shape: tuple[int, ...]) -> None:
    """As BART does, which takes the last word of each sentence; units stay an axis of their own."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(s.first(x)[x[..., 0] > 0].view(shape)[:, -1].relu())

    model = randomised(Graph(forward, first=nn.Linear(3, 4), head=nn.Linear(4, 2)))
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)
    inputs[..., 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    spec = discover(model, inputs)
    assert_groups(spec, [4])
    assert_random_permutations_preserve(spec, model, inputs)


@pytest.mark.parametrize("expanded", [True, False])
def test_rows_of_another_kind_are_put_where_a_mask_is_true(expanded: bool) -> None:
    def forward(s: nn.Module, tokens: Tensor, images: Tensor) -> Tensor:
        h = s.embed(tokens)
        mask = (tokens == 1).unsqueeze(-1)
        mask = mask.expand_as(h).to(h.device) if expanded else mask
        return s.head(h.masked_scatter(mask, s.vision(images)))

    model = randomised(
        Graph(forward, embed=nn.Embedding(5, 4), vision=nn.Linear(3, 4), head=nn.Linear(4, 2))
    )
    inputs = (torch.tensor([[1, 2, 1], [0, 1, 3]]), torch.randn(3, 3, dtype=torch.float64))
    spec = discover(model, inputs)
    assert_groups(spec, [4])
    assert_random_permutations_preserve(spec, model, inputs)


def test_a_mask_that_is_no_row_alike_keeps_the_order() -> None:
    case = linear_between(lambda h: h.masked_scatter(h > 0, h.sin()), [])
    spec = discover(case.model(), case.inputs())
    assert_groups(spec, [])
