"""The row-distance kernels against float64, and their launchers' checks."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow
from networks import mlp
from torch import Tensor
from triton_devices import DEVICES, INTERPRETED, assert_float32_grade

pytest.importorskip("triton")

from gpu_align import AlignmentProblem, discover
from gpu_align._device._random import RandomStream
from gpu_align._errors import InputError
from gpu_align.kernels._tiles import TILES, Tile, Work, choose_tile, split
from gpu_align.kernels._twins import row_distance_reference
from gpu_align.kernels.row_distance import RowDistance, RowProblem, RowTerm, pack_rows, work_of
from gpu_align.kernels.rows import split_planes

SMALL = Tile(16, 16, 16, 4, 2, "ieee")
"""Several tiles in every direction at the sizes of the tests."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


class Case:
    """Random terms of the group `g` and hypotheses of the others."""

    def __init__(
        self,
        device: torch.device,
        shapes: list[tuple[str, int]],
        sizes: dict[str, int],
        *,
        batch: int = 3,
        models: int = 2,
        signed: bool = False,
    ) -> None:
        """A shape is the term's groups, one letter each, and its inner size d."""
        self.terms = []
        for letters, inner in shapes:
            shape = [*(sizes[letter] for letter in letters), inner]
            target = torch.randn(shape, device=device)
            source = torch.randn([models, *shape], device=device)
            self.terms.append(RowTerm(target, source, tuple(letters), letters.index("g")))
        self.perms = {g: shuffled(batch, n, signed, device) for g, n in sizes.items()}
        self.model = torch.arange(batch, device=device) % max(models, 1)
        self.signed = signed

    def problem(self, *, split: bool = True, **more: Tensor) -> RowProblem:
        rows = pack_rows(self.terms, signed=self.signed, split=split)
        return RowProblem(rows, self.perms, self.model, **more)

    def reference(self, dtype: torch.dtype) -> Tensor:
        return row_distance_reference(self.terms, self.perms, self.model, dtype=dtype)

    def check(self, found: Tensor) -> None:
        exact = self.reference(torch.float64)
        assert_float32_grade(found, exact, self.reference(torch.float32))


def similarity(problem: RowProblem, tile: Tile | None = None) -> Tensor:
    return RowDistance(problem, tile=tile).launch()


def shuffled(batch: int, size: int, signed: bool, device: torch.device) -> Tensor:
    perm = torch.rand(batch, size).argsort(1)
    if signed:
        perm = torch.where(torch.rand(batch, size) < 0.5, ~perm, perm)
    return perm.to(device)


SIZES = {"g": 33, "h": 11, "k": 5, "l": 3}

SHAPES = {
    "unary": [("g", 7)],
    "linear": [("gh", 1)],
    "transposed": [("hg", 1), ("gk", 1), ("g", 1)],
    "convolution": [("gh", 9), ("hg", 9)],
    "composite": [("hg", 4)],
    "three groups": [("hkg", 2), ("gkh", 1), ("hgk", 3)],
    "four groups": [("khgl", 2)],
    "quadratic": [("gg", 3)],
}


def test_twin_is_the_sum_of_inner_products_of_rows() -> None:
    case = Case(torch.device("cpu"), [("gh", 3), ("hg", 2)], {"g": 6, "h": 5}, signed=True)
    expected = torch.zeros(3, 6, 6, dtype=torch.float64)
    for term, w, i, j in itertools.product(case.terms, range(3), range(6), range(6)):
        a = term.target.movedim(term.mode, 0)[i].double()
        b = term.source[case.model[w]].movedim(term.mode, 0)[j].double()
        for h in range(5):
            unit = int(case.perms["h"][w, h])
            row = b[unit] if unit >= 0 else -b[~unit]
            expected[w, i, j] += (a[h] * row).sum()
    torch.testing.assert_close(case.reference(torch.float64), expected)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_float32_grade(device: torch.device, shapes: list[tuple[str, int]]) -> None:
    case = Case(device, shapes, SIZES)
    case.check(similarity(case.problem()))


@pytest.mark.parametrize("size", [1, 15, 16, 17])
def test_sizes(device: torch.device, size: int) -> None:
    case = Case(device, [("gh", 3), ("g", 5)], {"g": size, "h": 7}, batch=2)
    case.check(similarity(case.problem(), SMALL))


@pytest.mark.parametrize("planes", TILES)
def test_every_tile_of_the_table(device: torch.device, planes: int) -> None:
    case = Case(device, [("gh", 3)], {"g": 70, "h": 7}, batch=1)
    problem = case.problem(split=planes == 3)
    assert problem.rows.planes == planes
    for tile in TILES[planes]:
        exact = replace(tile, precision="ieee")  # the interpreter has no other
        case.check(similarity(problem, exact if INTERPRETED else tile))


@pytest.mark.parametrize(
    "name",
    slow(["linear", "convolution", "three groups", "four groups"], but=["linear", "convolution"]),
)
def test_signs(device: torch.device, name: str) -> None:
    case = Case(device, SHAPES[name], SIZES, signed=True)
    case.check(similarity(case.problem()))


@pytest.mark.parametrize("batch", [0, 1])
def test_batch(device: torch.device, batch: int) -> None:
    case = Case(device, [("gh", 2)], SIZES, batch=batch, models=1)
    found = similarity(case.problem())
    assert found.shape == (batch, 33, 33)
    case.check(found)


def test_any_strides(device: torch.device) -> None:
    target = torch.randn(9, 4, 11, 33, device=device)[::2].permute(3, 2, 1, 0)
    source = torch.randn(33, 2, 11, 4, 5, device=device).movedim(0, 1)
    case = Case(device, [("gh", 1)], SIZES, batch=4)
    case.terms = [RowTerm(target.flatten(2), source.flatten(3), ("g", "h"), 0)]
    case.perms["h"] = case.perms["h"][:1].expand(4, 11)
    case.model = (torch.arange(8, device=device) // 2 % 2)[::2]
    with pytest.raises(InputError, match="contiguous along"):
        case.problem()
    case.model = case.model.contiguous()
    case.check(similarity(case.problem()))


@pytest.mark.parametrize(
    ("shapes", "size", "batch"),
    [([("hg", 9), ("g", 4)], 40, 1), ([("gkh", 2)], 1, 3), ([("hg", 3)], 64, 2)],
    ids=str,
)
def test_memory_that_is_given(
    device: torch.device, shapes: list[tuple[str, int]], size: int, batch: int
) -> None:
    case = Case(device, shapes, {**SIZES, "g": size}, batch=batch)
    out = torch.full((batch, size, size), torch.nan, device=device)
    found = RowDistance(case.problem(), out=out).launch()
    assert found is out
    case.check(found)


def test_a_prepared_launch_reads_index_vectors_anew(device: torch.device) -> None:
    case = Case(device, [("gh", 2)], SIZES)
    plan = RowDistance(case.problem())
    plan.launch()
    case.perms["h"].copy_(shuffled(3, 11, False, device))
    case.check(plan.launch())


def test_signs_of_groups_of_one_unit(device: torch.device) -> None:
    case = Case(device, [("ghk", 2)], {"g": 5, "h": 1, "k": 1}, signed=True, batch=8)
    case.check(similarity(case.problem()))


@pytest.mark.parametrize("models", [1, 2])
def test_unary_part(device: torch.device, models: int) -> None:
    case = Case(device, SHAPES["linear"], SIZES)
    unary = torch.randn(models, 35, 33, 33, device=device)[:, 1]
    found = similarity(case.problem(unary=unary))
    added = unary[case.model if models > 1 else case.model * 0]
    exact = case.reference(torch.float64) + added
    assert_float32_grade(found, exact, case.reference(torch.float32) + added)


@pytest.mark.parametrize("chunks", slow([(1, 3), (3, 1)], but=[(3, 1)]), ids=["whole", "chunks"])
def test_hypotheses_that_are_not_active(device: torch.device, chunks: tuple[int, int]) -> None:
    case = Case(device, [("gh", 2)], {"g": 17, "h": 21}, batch=4)
    active = torch.tensor([1, 0, 0, -7], device=device)
    buffer = torch.full((8, 17, 17), torch.nan, device=device)
    plan = RowDistance(case.problem(active=active), out=buffer[2:6], tile=SMALL, chunks=chunks)
    plan.launch()
    computed = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0], device=device).bool()
    assert torch.equal(buffer.isfinite().flatten(1).all(1), computed)
    assert torch.equal(buffer.isnan().flatten(1).all(1), ~computed)
    active.fill_(1)
    plan.launch()
    case.check(buffer[2:6])


@pytest.mark.parametrize("size", slow([9, 17], but=[9]))
def test_chunks_of_long_rows(device: torch.device, size: int) -> None:
    shapes = [("gh", 3), ("g", 5), ("hg", 1), ("gkl", 2)]
    case = Case(device, shapes, {**SIZES, "g": size}, signed=True, batch=1)
    problem = case.problem()
    assert work_of(problem).steps(SMALL) == 7
    plan = RowDistance(problem, tile=SMALL, chunks=(7, 1))
    first = plan.launch().clone()
    case.check(first)
    assert torch.equal(first, plan.launch())


def test_index_vectors_that_are_views(device: torch.device) -> None:
    case = Case(device, SHAPES["three groups"], SIZES, signed=True)
    for group, perm in case.perms.items():
        wide = torch.full((len(perm), 2 * perm.shape[1] + 1), 2**40, device=device)
        case.perms[group] = wide[:, 1 : 1 + perm.shape[1]]
        case.perms[group].copy_(perm)
    case.check(similarity(case.problem()))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_planes_sum_to_the_weights(values: list[float]) -> None:
    weights = torch.tensor(values, dtype=torch.float32)
    planes = split_planes(weights)
    assert all(plane.dtype == torch.bfloat16 and plane.isfinite().all() for plane in planes)
    error = (sum(plane.double() for plane in planes) - weights.double()).abs()
    assert error[weights.abs() >= 2**-109].eq(0).all()
    assert error.le(2**-134).all()


def test_planes_of_what_bfloat16_can_hold() -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    weights = bits.view(torch.bfloat16)
    weights = weights[weights.isfinite()]
    high, middle, low = split_planes(weights.float())
    assert torch.equal(high, weights)
    assert not middle.any()
    assert not low.any()


def test_planes_of_what_is_not_finite_are_not_finite() -> None:
    weights = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert split_planes(weights).sum(0).isnan().all()


def test_layout_of_planes() -> None:
    target, source = torch.randn(5, 3, 2), torch.randn(2, 5, 3, 2)
    (term,) = pack_rows([RowTerm(target, source, ("g", "h"))]).terms
    assert (term.target.shape, term.source.shape) == ((5, 3 * 16), (12, 3 * 16))
    exact = term.target.view(5, 3, 16).double().sum(1)
    assert torch.equal(exact[:, :6], target.flatten(1).double())
    assert not exact[:, 6:].any()
    exact = term.source.view(12, 3, 16).double().sum(1)
    assert torch.equal(exact[:, :5], source.movedim(1, -1).reshape(12, 5).double())


def test_agrees_with_the_alignment_problem(device: torch.device) -> None:
    model = mlp([6, 20, 12, 4])
    spec = discover(model, torch.randn(2, 6))
    states = [{k: v + torch.randn_like(v) for k, v in model.state_dict().items()} for _ in "abc"]
    problem = AlignmentProblem(states[:2], states[2], spec)
    hypotheses = problem.random(2, RandomStream(0))
    for group in problem.order:
        terms = [
            RowTerm(term.target.to(device), term.source.to(device), term.variables, mode)
            for term, mode in problem.modes_of(group)
        ]
        perms = {name: perm.to(device) for name, perm in hypotheses.perms.items()}
        rows = RowProblem(pack_rows(terms), perms, hypotheses.model.to(device))
        whole = problem.similarity(group, hypotheses.perms, hypotheses.model)
        expected = whole - problem.unary[group][hypotheses.model]
        torch.testing.assert_close(similarity(rows).cpu(), expected, rtol=1e-5, atol=1e-5)


def test_tile_keeps_the_device_busy() -> None:
    tiles = TILES[3]
    cases = {(4096, 1): 0, (512, 64): 0, (512, 1): 1, (64, 1000): 1, (32, 10**5): 2, (1, 1): 2}
    cases |= {(129, 1000): 1, (40, 1): 1}  # less padding, and more products a second
    for (units, batch), expected in cases.items():
        work = Work(units, batch, (512, 512, 1))
        assert choose_tile(work, 3, 132, 90) is tiles[expected], units
    assert choose_tile(Work(4096, 1, (512,)), 3, 108, 80) is tiles[1]


def test_long_rows_are_split_where_there_are_few_tiles() -> None:
    tile = Tile(64, 64, 32, 4, 3)
    assert split(Work(512, 64, (512, 512, 1)), tile, 132) == (1, 33)
    assert split(Work(512, 1, (512, 512, 1)), tile, 132) == (5, 7)
    assert split(Work(64, 1, (4096,)), tile, 132) == (16, 8)
    assert split(Work(64, 1, (18432,)), tile, 132) == (72, 8)
    assert split(Work(64, 1, (64,)), tile, 132) == (1, 2)


def test_aligned_weights_are_not_copied() -> None:
    target, source = torch.randn(32, 16), torch.randn(1, 16, 32)
    rows = pack_rows([RowTerm(target[..., None], source.mT[..., None], ("g", "h"))], split=False)
    assert rows.terms[0].target.data_ptr() == target.data_ptr()
    assert rows.terms[0].source.data_ptr() == source.data_ptr()


def test_bad_input() -> None:
    target, source = torch.randn(4, 3, 2), torch.randn(1, 4, 3, 2)
    with pytest.raises(InputError, match="mode below k"):
        RowTerm(target, source, ("g", "h"), 2)
    with pytest.raises(InputError, match="like the target"):
        RowTerm(target, source[0], ("g", "h"))
    with pytest.raises(InputError, match="at least one term"):
        pack_rows([])
    term = RowTerm(target, source, ("g", "h"))
    with pytest.raises(InputError, match="float32 weights"):
        pack_rows([RowTerm(target.double(), source.double(), ("g", "h"))])
    with pytest.raises(InputError, match="same rows"):
        pack_rows([term, RowTerm(target, source, ("g", "h"), 1)])
    rows, model = pack_rows([term]), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="index vector for each"):
        RowProblem(rows, {}, model)
    with pytest.raises(InputError, match=r"int64 \[2, 3\]"):
        RowProblem(rows, {"h": torch.zeros(1, 3, dtype=torch.int64)}, model)
    with pytest.raises(InputError, match="int64"):
        RowProblem(rows, {"h": torch.zeros(2, 3, dtype=torch.int32)}, model)
    good = RowProblem(rows, {"h": torch.arange(3).expand(2, 3)}, model)
    with pytest.raises(InputError, match="'out' as contiguous float32"):
        RowDistance(good, out=torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match="'unary' as float32"):
        RowProblem(rows, good.perms, model, unary=torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="'unary' as float32"):
        RowProblem(rows, good.perms, model, unary=torch.zeros(1, 4, 8)[..., ::2])
    with pytest.raises(InputError, match="'active' as int64"):
        RowProblem(rows, good.perms, model, active=torch.ones(2))


@pytest.mark.gpu
class TestOnTheDevice:
    """What the interpreter cannot show."""

    device = torch.device("cuda")

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")
    def test_no_host_synchronisation(self) -> None:
        case = Case(self.device, SHAPES["convolution"], SIZES, models=1)
        problem = case.problem()
        plan = RowDistance(problem)
        plan.launch()  # compiled before the mode is set
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            plan.launch()
            found = similarity(problem)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        case.check(found)
        assert torch.equal(plan.out, found)

    def test_current_stream(self) -> None:
        case = Case(self.device, [("gh", 8)], {"g": 512, "h": 256}, models=1)
        problem = case.problem()
        late = shuffled(3, 256, False, self.device)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            case.perms["h"].copy_(late)
            found = similarity(problem)
        stream.synchronize()
        case.check(found)

    def test_graph_and_determinism(self) -> None:
        case = Case(self.device, SHAPES["convolution"], SIZES)
        plan = RowDistance(case.problem())
        first = plan.launch().clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan.launch()
        for _ in range(3):
            plan.out.fill_(torch.nan)
            graph.replay()
            assert torch.equal(plan.out, first)

    @pytest.mark.parametrize("length", [64, 2048, 18432])
    def test_long_rows(self, length: int) -> None:
        case = Case(self.device, [("hg", 1)], {"g": 300, "h": length}, batch=2)
        for planes, tiles in TILES.items():
            problem = case.problem(split=planes == 3)
            for tile in tiles:
                case.check(similarity(problem, tile))

    def test_offsets_beyond_32_bits(self) -> None:
        if torch.cuda.mem_get_info()[0] < 32 * 2**30:
            pytest.skip("needs 32 GiB of free device memory")
        size, batch, models = 4096, 144, 144
        target = torch.randn(size, size, 1, device=self.device)
        source = torch.randn(models, size, size, device=self.device).mT[..., None]
        perms = {"h": shuffled(batch, size, False, self.device)}
        model = torch.arange(batch, device=self.device)
        rows = pack_rows([RowTerm(target, source, ("g", "h"))])
        found = similarity(RowProblem(rows, perms, model))
        for w in (0, 127, 128, 143):
            moved = source[w, ..., 0][:, perms["h"][w]]
            exact = target[..., 0].double() @ moved.double().T
            plain = target[..., 0] @ moved.T
            assert_float32_grade(found[w], exact, plain)
