"""Mixtures of experts of Hugging Face transformers, and ops that have no kernel for float64."""

from typing import Any

import pytest
import torch
import transformers
from marks import slow
from networks import Graph, randomised
from symmetry_cases import Sizes, assert_groups
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, align, discover
from gpu_align._align import ResultRecord
from gpu_align._symmetry import compare_outputs
from gpu_align._symmetry._in_double import SHORT_TOLERANCE, grouped_product

SMALL = {  # rows of a grouped product are multiples of 16 bytes
    "vocab_size": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "moe_intermediate_size": 12,
    "max_position_embeddings": 16,
    "num_experts_per_tok": 2,
}
ATTENTION: Sizes = [8, 2, (4, 1)]
"""Units of the stream, heads, dimensions of the values inside each."""
FAMILIES: dict[str, tuple[dict[str, Any], Sizes]] = {
    "Mixtral": ({"num_local_experts": 4}, [*ATTENTION, 4, (12, 3)]),
    "Qwen3Moe": ({"num_experts": 4, "head_dim": 4}, [*ATTENTION, 4, (12, 3)]),
    "Qwen2Moe": (
        {"num_experts": 4, "shared_expert_intermediate_size": 6},
        [*ATTENTION, 6, 4, (12, 4)],
    ),
    "GptOss": ({"num_local_experts": 4, "head_dim": 4}, [*ATTENTION, 4, (12, 3)]),
}


def mixture(family: str, experts: str = "grouped_mm") -> tuple[nn.Module, dict[str, Any]]:
    """Return a language model with random weights, and its inputs."""
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family][0])
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.set_experts_implementation(experts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model, {"input_ids": torch.randint(3, 16, (2, 6)), "use_cache": False}


WRITTEN = [*((family, "grouped_mm") for family in FAMILIES), ("Mixtral", "batched_mm")]


@pytest.mark.parametrize(
    "written",
    slow(WRITTEN, but=[("GptOss", "grouped_mm"), ("Mixtral", "batched_mm")]),
    ids="-".join,
)
def test_experts_have_hidden_units_inside_them(written: tuple[str, str]) -> None:
    family, experts = written
    model, inputs = mixture(family, experts)
    spec = discover(model, inputs)
    assert_groups(spec, FAMILIES[family][1])
    assert "float32" not in spec.origin
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        moved = Permutation.random(spec, generator=generator).apply(state)
        assert compare_outputs(model, inputs, state, moved).difference <= 1e-9


def test_experts_are_aligned() -> None:
    model, inputs = mixture("Mixtral")
    spec = discover(model, inputs)
    hidden = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    other, _ = mixture("Mixtral")
    other.load_state_dict(hidden.apply(model.state_dict()), strict=False)
    result = align(other, model, example_inputs=inputs, search="descent")
    assert result.distance == 0
    assert result.function_preserved


def test_grouped_products_in_float64_are_those_of_torch() -> None:
    rows, weights = torch.randn(7, 8), torch.randn(3, 8, 16)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    expected = torch._grouped_mm(rows, weights, offs=ends)
    made = grouped_product(rows.double(), weights.double(), ends)
    torch.testing.assert_close(made[:6].float(), expected[:6])


@torch.library.custom_op("gpu_align_tests::only_float32", mutates_args=())
def only_float32(x: Tensor) -> Tensor:
    """Return a tensor twice as large, if its numbers are short."""
    if x.dtype is torch.float64:
        raise RuntimeError("expected a Float32 tensor, got Double")
    return 2 * x


@only_float32.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def model_with_a_short_kernel() -> nn.Module:
    return randomised(
        Graph(
            lambda s, x: s.head(s.second(only_float32(s.first(x).relu())).relu()),
            first=nn.Linear(3, 4),
            second=nn.Linear(4, 5),
            head=nn.Linear(5, 2),
        )
    ).float()


def test_an_op_without_a_float64_kernel_is_run_in_float32_and_said() -> None:
    model, inputs = model_with_a_short_kernel(), torch.randn(5, 3)
    spec = discover(model, inputs)
    assert_groups(spec, [5])
    assert "float32" in spec.origin
    assert "only_float32" in spec.origin
    assert spec.verify(model, inputs) <= SHORT_TOLERANCE
    assert PermutationSpec.from_json(spec.to_json()).origin == spec.origin


def test_outputs_that_needed_float32_are_judged_by_its_rounding() -> None:
    source, target, inputs = (*(model_with_a_short_kernel() for _ in range(2)), torch.randn(5, 3))
    order = Permutation.random(discover(source, inputs), seed=1)
    target.load_state_dict(order.apply(source.state_dict()))
    result = align(source, target, example_inputs=inputs, search="descent")
    assert sum(result.permutation.moved().values()) > 0
    assert result.distance == 0
    assert result.function_limit == SHORT_TOLERANCE
    assert result.function_preserved
    assert "only_float32.default in float32" in result.function_note
    assert "partly float32" in result.summary()
    assert ResultRecord.from_json(result.to_json()).function_limit == SHORT_TOLERANCE
    wrong = {**result.state_dict, "head.weight": result.state_dict["head.weight"].flip(1)}
    compared = compare_outputs(source, inputs, source.state_dict(), wrong)
    assert not compared.is_preserved
