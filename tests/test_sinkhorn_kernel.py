"""The fused annealing step against float64, and its launcher's checks."""

import pytest
import torch
from torch import Tensor
from triton_devices import DEVICES, assert_float32_grade

pytest.importorskip("triton")

from gpu_align._errors import InputError
from gpu_align._search._relaxed import sinkhorn
from gpu_align.kernels._twins import annealing_step_reference
from gpu_align.kernels.sinkhorn import LARGEST, AnnealingStep, annealing_step


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def pair(size: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    similarity = 3 * torch.randn(batch, size, size, device=device) + 1
    return similarity, torch.rand(batch, size, size, device=device)


def check(
    similarity: Tensor, soft: Tensor, temperature: float = 0.1, iterations: int = 3
) -> Tensor:
    found, plain, exact = soft.clone(), soft.clone(), soft.double()
    annealing_step([similarity], [found], temperature, 0.5, iterations)
    annealing_step_reference(similarity, plain, temperature, 0.5, iterations)
    annealing_step_reference(similarity.double(), exact, temperature, 0.5, iterations)
    assert_float32_grade(found, exact, plain)
    return found


def test_twin_is_the_step_of_the_search() -> None:
    similarity, soft = (matrix.double() for matrix in pair(7, 2, torch.device("cpu")))
    deviation = similarity.flatten(1).std(dim=1)[:, None, None]
    expected = 0.7 * soft + 0.3 * sinkhorn(similarity / (0.2 * deviation), 10)
    annealing_step_reference(similarity, soft, 0.2, 0.3, 10)
    torch.testing.assert_close(soft, expected)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 33, 64])
def test_resident(device: torch.device, size: int) -> None:
    assert size <= LARGEST
    check(*pair(size, 3, device))


@pytest.mark.parametrize("size", [20, 60])
@pytest.mark.parametrize("temperature", [1e-3, 100.0])
def test_extreme_temperatures(device: torch.device, size: int, temperature: float) -> None:
    check(*pair(size, 1, device), temperature=temperature, iterations=1)


@pytest.mark.parametrize("size", [20, 60])
def test_alike_units_stay_uniform(device: torch.device, size: int) -> None:
    similarity = torch.full((1, size, size), 5.0, device=device)
    similarity += 1e-7 * torch.randn_like(similarity)
    soft = torch.full_like(similarity, 1 / size)
    found = check(similarity, soft, temperature=1.0, iterations=1)
    torch.testing.assert_close(found, soft, rtol=0.5, atol=0)
    zero = torch.zeros_like(similarity)
    annealing_step([zero], [soft], 0.1, 1.0, 1)
    torch.testing.assert_close(soft, torch.full_like(soft, 1 / size))


def test_scale_and_shift_do_not_matter(device: torch.device) -> None:
    similarity, soft = pair(24, 2, device)
    for factor, shift in [(1e-12, 0.0), (1e12, 0.0), (1.0, 100.0)]:
        check(similarity * factor + shift, soft)


def test_groups_of_any_size_in_one_step(device: torch.device) -> None:
    shapes = [(5, 2), (30, 1), (64, 2), (16, 3), (7, 0), (33, 1)]
    pairs = [pair(size, batch, device) for size, batch in shapes]
    expected = [soft.clone() for _, soft in pairs]
    for (similarity, _), soft in zip(pairs, expected, strict=True):
        annealing_step([similarity], [soft], 0.3, 0.25, 1)
    annealing_step([s for s, _ in pairs], [p for _, p in pairs], 0.3, 0.25, 1)
    for (_, soft), single in zip(pairs, expected, strict=True):
        assert torch.equal(soft, single)


def test_prepared_step_reads_similarities_anew(device: torch.device) -> None:
    similarity, soft = pair(9, 2, device)
    step = AnnealingStep([similarity], [soft])
    step.launch(0.5, 0.5, 2)
    similarity.copy_(pair(9, 2, device)[0])
    expected = soft.clone()
    annealing_step_reference(similarity, expected, 0.4, 0.5, 2)
    step.launch(0.4, 0.5, 2)
    torch.testing.assert_close(soft, expected)


def test_full_damping_ends_doubly_stochastic(device: torch.device) -> None:
    similarity, soft = pair(20, 2, device)
    annealing_step([similarity], [soft], 0.5, 1.0, 30)
    torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[0, :1]).expand(2, 20))
    torch.testing.assert_close(soft.sum(2), soft.sum(1), rtol=0, atol=1e-3)


def test_nothing_to_do() -> None:
    annealing_step([], [], 0.1)
    nothing = torch.zeros(0, 5, 5)
    annealing_step([nothing], [nothing], 0.1)
    assert nothing.shape == (0, 5, 5)


def test_bad_input() -> None:
    good = torch.zeros(1, 4, 4)
    with pytest.raises(InputError, match="as many S as P"):
        annealing_step([good], [], 0.1)
    with pytest.raises(InputError, match=r"S \[b, n, n\]"):
        annealing_step([good[0]], [good[0]], 0.1)
    with pytest.raises(InputError, match="at most 64 units, got 65"):
        annealing_step([torch.zeros(1, 65, 65)], [torch.zeros(1, 65, 65)], 0.1)
    with pytest.raises(InputError, match="'soft' as contiguous"):
        annealing_step([good], [good.double()], 0.1)
    with pytest.raises(InputError, match="'similarity' as contiguous"):
        annealing_step([torch.zeros(2, 4, 4).mT], [torch.zeros(2, 4, 4)], 0.1)
    for numbers in [(0.0, 0.5, 1), (0.1, 0.0, 1), (0.1, 1.5, 1), (0.1, 0.5, 0)]:
        with pytest.raises(InputError, match="temperature > 0"):
            annealing_step([good], [good], *numbers)


@pytest.mark.gpu
class TestOnTheDevice:
    """What the interpreter cannot show."""

    device = torch.device("cuda")

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")
    def test_no_host_synchronisation_and_determinism(self) -> None:
        sizes = [5, 16, 33, 64]
        pairs = [pair(size, 4, self.device) for size in sizes]
        found = []
        for mode in ("default", "error", "error"):
            soft = [p.clone() for _, p in pairs]
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                annealing_step([s for s, _ in pairs], soft, 0.2)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found.append(soft)
        for group in zip(*found, strict=True):
            assert torch.equal(group[0], group[1])
            assert torch.equal(group[0], group[2])

    def test_current_stream(self) -> None:
        similarity, soft = pair(60, 2, self.device)
        late, expected = torch.randn_like(similarity), soft.clone()
        annealing_step_reference(late, expected, 0.2, 0.5, 10)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            similarity.copy_(late)
            annealing_step([similarity], [soft], 0.2)
        stream.synchronize()
        torch.testing.assert_close(soft, expected, rtol=1e-4, atol=1e-6)

    def test_offsets_beyond_32_bits(self) -> None:
        if torch.cuda.mem_get_info()[0] < 32 * 2**30:
            pytest.skip("needs 32 GiB of free device memory")
        similarity, soft = pair(64, 600_000, self.device)
        last, exact = soft[-1:].clone(), soft[-1:].double()
        annealing_step([similarity], [soft], 0.2)
        annealing_step_reference(similarity[-1:], last, 0.2, 0.5, 10)
        annealing_step_reference(similarity[-1:].double(), exact, 0.2, 0.5, 10)
        assert_float32_grade(soft[-1:], exact, last)
