"""Discovery where axes are joined, cut or repeated: groups by hand, functions preserved."""

import pytest
import torch
import torch.nn.functional as F
from networks import Graph
from symmetry_cases import (
    Case,
    assert_case,
    assert_random_permutations_preserve,
    conv_between,
    linear_between,
)
from torch import Tensor, nn

from gpu_align import AlignmentProblem, CoordinateDescent, Permutation, discover, run_search


def channel_shuffle(x: Tensor) -> Tensor:
    batch, channels, *places = x.shape
    return x.view(batch, 2, channels // 2, *places).transpose(1, 2).reshape(x.shape)


def dense_net() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        first = s.a(x)
        second = torch.cat([first, F.relu(s.b(first))], 1)
        third = torch.cat([second, F.relu(s.c(F.relu(s.norm(second))))], 1)
        return s.head(F.relu(s.hidden(third.flatten(1))))

    return Graph(
        forward,
        a=nn.Conv2d(2, 3, 3, padding=1),
        b=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.BatchNorm2d(7),
        c=nn.Conv2d(7, 5, 3, padding=1),
        hidden=nn.Linear(12 * 16, 6),
        head=nn.Linear(6, 2),
    )


def u_net() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        fine = F.relu(s.down1(x))
        coarse = F.relu(s.down2(F.max_pool2d(fine, 2)))
        return s.head(F.relu(s.join(torch.cat([s.up(coarse), fine], 1))))

    return Graph(
        forward,
        down1=nn.Conv2d(1, 3, 3, padding=1),
        down2=nn.Conv2d(3, 5, 3, padding=1),
        up=nn.ConvTranspose2d(5, 4, 2, 2),
        join=nn.Conv2d(7, 6, 3, padding=1),
        head=nn.Conv2d(6, 1, 1),
    )


def squeeze_and_excitation() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(s.depthwise(s.expand(x)))
        gate = torch.sigmoid(s.grow(F.relu(s.squeeze(x.mean((2, 3), keepdim=True)))))
        return s.head((x * gate).mean((2, 3)))

    return Graph(
        forward,
        expand=nn.Conv2d(2, 6, 1),
        depthwise=nn.Conv2d(6, 6, 3, groups=6),
        squeeze=nn.Conv2d(6, 3, 1),
        grow=nn.Conv2d(3, 6, 1),
        head=nn.Linear(6, 2),
    )


def gated() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        value, gate = s.up(x).chunk(2, -1)
        return s.head(s.down(F.silu(gate) * value))

    return Graph(forward, up=nn.Linear(3, 10), down=nn.Linear(5, 4), head=nn.Linear(4, 2))


CASES = {
    "cat_with_itself": linear_between(lambda h: torch.cat([h, h], -1), [4], out=8),
    "cat_with_input": Case(
        lambda: Graph(
            lambda s, x: s.head(torch.cat([x, s.first(x)], 1)),
            first=nn.Linear(3, 4),
            head=nn.Linear(7, 2),
        ),
        (2, 3),
        [4],
    ),
    "cat_of_batches": linear_between(lambda h: torch.cat([h, 2 * h], 0), [4]),
    "stack": linear_between(lambda h: torch.stack([h, h.tanh()], 1).sum(1), [4]),
    "stack_last": linear_between(lambda h: torch.stack([h, h.tanh()], -1).flatten(1), [4], out=8),
    "split_halves_meet": linear_between(lambda h: sum(h.split(2, -1)), [2], out=2),
    "split_halves_stay": linear_between(lambda h: torch.cat(h.split([1, 3], 1), 1), [3]),
    "chunk_unused": linear_between(lambda h: h.chunk(2, 1)[0], [2], out=2),
    "slice": linear_between(lambda h: h[:, 1:], [3], out=3),
    "slice_from_the_end": linear_between(lambda h: h[:, -3:-1], [2], out=2),
    "slice_of_nothing": linear_between(lambda h: h[:, :], [4]),
    "slice_with_step": linear_between(lambda h: h[:, ::2], [2], out=2),
    "slice_from_within": linear_between(lambda h: h[:, 2::2], [], out=1),
    "slice_to_within": linear_between(lambda h: h[:, :3:2], [], out=2),
    "interleaved_gates": linear_between(lambda h: h[:, ::2] * h[:, 1::2].sigmoid(), [2], out=2),
    "overlapping_slices": linear_between(lambda h: h[:, :3] + h[:, 1:], [], out=3),
    "select": linear_between(lambda h: h[:, -2:-1] + h.select(1, 3)[:, None], [], out=1),
    "unbind": linear_between(lambda h: torch.stack(h.unbind(1)[:2], 1), [], out=2),
    "unbind_batch": linear_between(lambda h: torch.stack(h.unbind(0)), [4]),
    "glu": linear_between(F.glu, [2], out=2),
    "pad_units": linear_between(lambda h: F.pad(h, (1, 2)), [4], out=7),
    "pad_negative": linear_between(lambda h: F.pad(h, (0, -1)), [], out=3),
    "pad_places": conv_between(lambda: nn.ZeroPad2d(1), [4]),
    "pad_reflect": conv_between(lambda: nn.ReflectionPad2d(1), [4]),
    "pad_channels": Case(
        lambda: Graph(
            lambda s, x: s.head((F.pad(s.a(x), (0, 0, 0, 0, 1, 1)) + s.b(x)).mean((2, 3))),
            a=nn.Conv2d(2, 3, 1),
            b=nn.Conv2d(2, 5, 1),
            head=nn.Linear(5, 2),
        ),
        (2, 2, 3, 3),
        [3],
    ),
    "conv_transpose1d": conv_between(lambda: nn.ConvTranspose1d(4, 4, 2), [4, 4], dims=1),
    "conv_transpose2d": conv_between(lambda: nn.ConvTranspose2d(4, 4, 2, 2), [4, 4]),
    "conv_transpose3d": conv_between(lambda: nn.ConvTranspose3d(4, 4, 2), [4, 4], dims=3),
    "conv_transpose_groups": conv_between(
        lambda: nn.ConvTranspose2d(4, 4, 2, groups=2), [2, (2, 0), (2, 0)]
    ),
    "depthwise": conv_between(lambda: nn.Conv2d(4, 4, 3, groups=4), [4]),
    "depthwise_transposed_sizes": conv_between(lambda: nn.Conv1d(4, 4, 1, groups=4), [4], dims=1),
    "grouped": conv_between(lambda: nn.Conv2d(4, 4, 1, groups=2), [2, (2, 0), (2, 0)]),
    "upsample1d": conv_between(lambda: nn.Upsample(scale_factor=2), [4], dims=1),
    "upsample2d": conv_between(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), [4]),
    "upsample3d": conv_between(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), [4], dims=3),
    "dense_net": Case(dense_net, (2, 2, 4, 4), [3, 4, 5, 6]),
    "u_net": Case(u_net, (2, 1, 8, 8), [3, 5, 4, 6]),
    "squeeze_and_excitation": Case(squeeze_and_excitation, (2, 2, 4, 4), [6, 3]),
    "gated": Case(gated, (2, 3), [5, 4]),
    # Two halves are interleaved. Each has an order of its own, and they may be exchanged.
    "channel_shuffle": Case(
        lambda: Graph(
            lambda s, x: s.head(channel_shuffle(s.conv(x)).mean((2, 3))),
            conv=nn.Conv2d(2, 6, 1),
            head=nn.Linear(6, 2),
        ),
        (2, 2, 3, 3),
        [2, (3, 0)],
    ),
    # Channels c r r become c channels: c free, the order of r r inside is not.
    "pixel_shuffle": Case(
        lambda: Graph(
            lambda s, x: s.head(F.pixel_shuffle(s.conv(x), 2).mean((2, 3))),
            conv=nn.Conv2d(2, 12, 1),
            head=nn.Linear(3, 2),
        ),
        (2, 2, 3, 3),
        [3],
    ),
    # Each of 3 channels makes 2 outputs; these have an order of their own for each channel.
    "depthwise_multiplier": Case(
        lambda: Graph(
            lambda s, x: s.head(s.depthwise(s.conv(x)).mean((2, 3))),
            conv=nn.Conv2d(2, 3, 1),
            depthwise=nn.Conv2d(3, 6, 1, groups=3),
            head=nn.Linear(6, 2),
        ),
        (2, 2, 3, 3),
        [3, (2, 0)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    assert_case(case)


def test_writing_into_a_slice_pins_what_is_written() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = s.first(x)
        hidden[:, :1] = 0
        return s.head(hidden)

    model = Graph(forward, first=nn.Linear(3, 4), head=nn.Linear(4, 2)).double()
    inputs = torch.randn(2, 3, dtype=torch.float64)
    spec = discover(model, inputs)
    assert [group.size for group in spec.groups.values()] in ([], [3])
    assert_random_permutations_preserve(spec, model, inputs)


@pytest.mark.parametrize("name", ["dense_net", "u_net", "squeeze_and_excitation", "gated"])
def test_a_planted_permutation_is_found(name: str) -> None:
    case = CASES[name]
    model = case.model()
    spec = discover(model, case.inputs())
    target = model.state_dict()
    shuffle = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    problem = AlignmentProblem(shuffle.apply(target), target, spec)
    search = CoordinateDescent(starts=20, initial="random")
    outcome = run_search(search, problem)
    assert problem.distance(problem.permutation(outcome.best)) == 0
