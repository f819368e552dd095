"""Certificates computed on a CUDA device: `pytest -m gpu`."""

import pytest
import torch
from test_certificate import (
    CERTIFIED,
    SIMILARITIES,
    assert_certified_alike,
    assert_exact,
)
from test_many import assert_equal_results, zoo

from gpu_align import AlignmentProblem, CoordinateDescent, align, run_search
from gpu_align._align._certificate import certificates
from gpu_align._assignment import exact_duals
from gpu_align._device._backend import choose_engine
from gpu_align._problem import lower_bound

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cupy() -> None:
    pytest.importorskip("cupy")


@pytest.mark.parametrize("n", [1, 7, 32, 45, 300])
@pytest.mark.parametrize("kind", SIMILARITIES)
def test_duals_are_exact_in_float64(kind: str, n: int) -> None:
    similarity = SIMILARITIES[kind](n)
    assert_exact(similarity, *(found.cpu() for found in exact_duals(similarity.cuda())))


@pytest.mark.parametrize("name", CERTIFIED)
def test_certificates_are_those_of_the_host(name: str) -> None:
    spec, sources, target = zoo(name, 3)
    engine = choose_engine("cuda")
    host, device = (
        AlignmentProblem(sources, target, spec, dtype=torch.float64, **options)
        for options in ({}, {"engine": engine})
    )
    assert device.constant.is_cuda
    best = run_search(CoordinateDescent(order="forward"), host).best
    torch.testing.assert_close(lower_bound(device).cpu(), lower_bound(host), rtol=1e-9, atol=1e-9)
    assert_certified_alike(certificates(device, best.to(engine.device)), certificates(host, best))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", ["mlp", "heads", "signed"])
def test_results_are_those_of_the_host(name: str, count: int) -> None:
    spec, sources, target = zoo(name, count)
    options = {"spec": spec, "search": CoordinateDescent(order="forward")}
    found = align(sources, target, device="cuda", **options)
    for one, other in zip(found, align(sources, target, device="cpu", **options), strict=True):
        assert_equal_results(one, other)
        assert all(tensor.device.type == "cpu" for tensor in one.state_dict.values())


def test_weights_that_lie_on_the_device_stay_there() -> None:
    spec, sources, target = zoo("mlp", 3)
    there = [{n: t.cuda() for n, t in source.items()} for source in sources]
    options = {"spec": spec, "search": CoordinateDescent(order="forward")}
    for device in ("cpu", "cuda"):
        found = align(there, target, device=device, **options)
        for one, other in zip(found, align(sources, target, **options), strict=True):
            assert one.distance == pytest.approx(other.distance, rel=1e-12)
            assert all(tensor.is_cuda for tensor in one.state_dict.values())
