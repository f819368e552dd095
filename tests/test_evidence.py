"""Evidence from data: planted orders are found again, and the scale is what it is said to be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import architectures as own
import hf_architectures as hf
import numpy as np
import pytest
import sequence_architectures as sequence
import torch
from marks import slow
from networks import mlp, randomised
from scipy.optimize import linear_sum_assignment
from test_cli import FEW, Cli, cli, folder
from torch import Tensor, nn

from gpu_align import (
    AlignmentFailure,
    AlignmentProblem,
    AlignmentResult,
    CoordinateDescent,
    InputError,
    Permutation,
    PermutationSpec,
    activation_evidence,
    align,
    discover,
    run_search,
)
from gpu_align._align import KINDS, Evidence, read_result
from gpu_align._align._evidence import guided
from gpu_align._align._networks import Model
from gpu_align._cli import _options
from gpu_align._problem import picked
from gpu_align._symmetry import spec_of_file

__all__ = ["cli", "folder"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def tanh_mlp(seed: int) -> nn.Sequential:
    return randomised(mlp([5, 8, 7, 3], nn.Tanh), seed)


def examples(count: int = 60) -> Tensor:
    return own.normal(count, 5)


def masked_attention() -> tuple[nn.Module, Tensor]:
    """Attention over sequences that end in padding, which a mask hides."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            hidden = tokens.cumsum(1) > 12
            return self.head(self.attention(x, x, x, key_padding_mask=hidden)[0][:, 0])

    return randomised(Padded(), 0), own.tokens(4, 5)


PLANTED: dict[str, tuple[Callable[[], tuple[nn.Module, object]], object]] = {
    "tanh mlp": (lambda: (tanh_mlp(0), examples(4)), (examples(), None)),
    "residual cnn": (own.se_resnet, (own.normal(20, 3, 5, 5), None)),
    "lstm": (sequence.lstm, (own.tokens(40, 5), None)),
    "gpt2": (lambda: hf.gpt2("sdpa"), (own.tokens(40, 5), None)),
    "masked attention": (masked_attention, (own.tokens(40, 5), None)),
    "depthwise": (own.depthwise_separable, (own.normal(20, 3, 5, 5), None)),
}


@pytest.mark.parametrize("name", slow(PLANTED, but=("tanh mlp", "lstm", "masked attention")))
def test_a_planted_copy_is_found_by_what_its_units_do(name: str) -> None:
    make, data = PLANTED[name]
    model, inputs = make()
    spec = discover(model, inputs, verify=False)
    state = copied(model)
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    source = planted.apply(state)
    for kind in ("activations", "both"):
        result = align(
            *(source, model),
            spec=spec,
            example_inputs=inputs,
            data=data,
            evidence=kind,
            search="descent",
        )
        assert result.distance == pytest.approx(0, abs=1e-20)
        assert result.evidence == kind
        assert result.function_preserved


def independent() -> tuple[nn.Module, nn.Module, PermutationSpec]:
    target, source = tanh_mlp(0), tanh_mlp(1)
    return target, source, discover(target, examples(4), verify=False)


def test_activations_alone_give_the_best_total_correlation_of_every_group() -> None:
    target, source, spec = independent()
    found = activation_evidence(target, source, spec, (examples(), None))
    result = align(source, target, data=(examples(), None), evidence="activations")
    assert sorted(name.rstrip("±") for name in found) == sorted(spec.groups)
    for name, matrix in found.items():
        group = name.rstrip("±")
        rows, columns = linear_sum_assignment(-matrix.abs().numpy())
        order, signs = result.permutation.perms[group], result.permutation.signs[group]
        got = (signs * matrix[torch.arange(len(order)), order]).sum()
        assert float(got) == pytest.approx(matrix.abs().numpy()[rows, columns].sum())


def test_alpha_one_weighs_correlations_like_the_weights() -> None:
    target, source, spec = independent()
    states = copied(source), copied(target)
    found = activation_evidence(target, source, spec, (examples(), None))
    problem = AlignmentProblem(*states, spec)
    evidence = Evidence.of("both", (examples(), None), 1, 0)
    assert evidence is not None
    weighed = guided(problem, evidence, [found], seed=0, progress=None).evidence
    best = run_search(CoordinateDescent(), problem, seed=0).best
    for name, matrix in weighed.items():
        variables = problem.families[name.rstrip("±")].variables
        worth = sum(
            float(picked(problem.similarity(v, best.perms, best.model), best.perms[v]))
            for v in variables
        )
        assert float(picked(matrix, best.perms[name])) == pytest.approx(worth)
        ratio = matrix[0] / found[name]
        assert float(ratio.max()) == pytest.approx(float(ratio.min()))
    half = guided(problem, replace(evidence, alpha=0.5), [found], seed=0, progress=None).evidence
    assert all(torch.allclose(half[name], 0.5 * weighed[name]) for name in weighed)


def test_distance_and_bound_are_those_of_the_weights() -> None:
    target, source, spec = independent()
    data = (examples(), None)
    fast = {"search": "descent"}
    plain = align(source, target, spec=spec, **fast)
    result = align(source, target, spec=spec, data=data, alpha=3, **fast)
    problem = AlignmentProblem(copied(source), copied(target), spec)
    assert result.distance == pytest.approx(problem.distance(result.permutation))
    assert result.distance_before == plain.distance_before
    assert result.lower_bound == plain.lower_bound
    assert (result.evidence, result.alpha) == ("both", 3.0)
    assert "weights and activations, alpha 3" in result.summary()
    assert (plain.evidence, plain.alpha) == ("weights", None)
    assert "without data a lower distance can be a worse merge" in plain.summary()
    unweighted = align(source, target, data=data, alpha=0, **fast)
    assert unweighted.distance == pytest.approx(plain.distance)
    only = align(source, target, data=data, evidence="weights", **fast)
    assert only.permutation.perms.keys() == plain.permutation.perms.keys()
    assert (only.distance, only.evidence) == (plain.distance, "weights")


def test_the_report_says_what_was_looked_at(tmp_path: Path) -> None:
    target, source, _ = independent()
    result = align(source, target, data=(examples(), None), search="descent")
    result.save_json(tmp_path / "result.json")
    assert read_result(tmp_path / "result.json")["alpha"] == 0.3
    result.write_report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "weights and activations, alpha 0.3" in text
    assert "What activations say is taken off it" in text


def test_each_of_several_sources_is_aligned_as_it_is_alone() -> None:
    target, first, _ = independent()
    second = tanh_mlp(2)
    broken = copied(second) | {"0.weight": torch.zeros(3, 3)}
    options = {"data": (examples(), None), "search": "descent"}
    results = align([first, broken, second], target, **options)
    assert isinstance(results[1], AlignmentFailure)
    for result, source in ((results[0], first), (results[2], second)):
        alone = align(source, target, **options)
        assert isinstance(result, AlignmentResult)
        assert isinstance(alone, AlignmentResult)
        assert result.distance == pytest.approx(alone.distance)
        for group, order in alone.permutation.perms.items():
            assert result.permutation.perms[group].tolist() == order.tolist()


def test_state_dicts_under_other_names_are_run_in_the_model() -> None:
    target, source, spec = independent()
    expected = activation_evidence(target, source, spec, (examples(), None))
    wrapped = [{f"module.{k}": v for k, v in copied(net).items()} for net in (target, source)]
    found = activation_evidence(*wrapped, spec, (examples(), None), model=target)
    names = {name: f"net.{name}" for name in copied(target)}
    in_file = spec_of_file(spec, names, {})
    renamed = [{names[k]: v for k, v in copied(net).items()} for net in (target, source)]
    model = Model(target, examples(4), names=names)
    by_file = activation_evidence(*renamed, in_file, (examples(), None), model=model)
    for name, matrix in expected.items():
        assert torch.equal(found[name], matrix)
        assert torch.equal(by_file[name], matrix)


def test_groups_of_a_coarser_spec_get_what_lies_in_them() -> None:
    model, inputs = hf.gpt2("sdpa")
    spec = discover(model, inputs, verify=False)
    heads, values = "transformer.h.0.attn", "transformer.h.0.attn.c_attn[1]"
    document = json.loads(spec.to_json())
    kept = {n: g for n, g in spec.groups.items() if n in (heads, "transformer.h.0.mlp.c_fc")}

    def without(axis: object) -> object:
        if isinstance(axis, str) and axis.partition("^")[0] not in kept:
            return spec.groups[axis.partition("^")[0]].size
        if isinstance(axis, dict):
            return {kind: [without(part) for part in parts] for kind, parts in axis.items()}
        return axis

    document["groups"] = {n: g for n, g in document["groups"].items() if n in kept}
    for name, axes in document["tensors"].items():
        document["tensors"][name] = [without(axis) for axis in axes]
    coarse = PermutationSpec.from_json(json.dumps(document))
    other = randomised(hf.gpt2("sdpa")[0], 5)
    data = (own.tokens(30, 5), None)
    fine, found = (activation_evidence(model, other, s, data) for s in (spec, coarse))
    assert found.keys() == kept.keys()
    assert torch.allclose(found["transformer.h.0.mlp.c_fc"], fine["transformer.h.0.mlp.c_fc"])
    inside = sum(
        matrix.reshape(3, 4, 3, 4).diagonal(dim1=1, dim2=3).sum(-1)
        for name, matrix in fine.items()
        if name.rstrip("±") in (values, "transformer.h.0.attn.c_attn")
    )
    assert torch.allclose(found[heads], inside)


def test_groups_that_no_data_show_are_decided_by_the_weights() -> None:
    model, inputs = own.mlp_mixer()
    spec = discover(model, inputs, verify=False)
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    source, data = planted.apply(copied(model)), (own.normal(20, *inputs.shape[1:]), None)
    assert "blocks.0.tokens.0" not in activation_evidence(model, source, spec, data, model=model)
    result = align(source, model, spec=spec, data=data, evidence="activations", search="descent")
    assert result.distance == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence": "both"}, "needs data"),
        ({"evidence": "all", "data": (examples(), None)}, "weights, activations, both, got 'all'"),
        ({"alpha": 1.0}, "no data were given"),
        ({"alpha": 1.0, "evidence": "activations", "data": (examples(), None)}, "leave alpha"),
        ({"alpha": -1.0, "data": (examples(), None)}, "at least 0, or .auto., got -1"),
        ({"alpha": True, "data": (examples(), None)}, "at least 0, or .auto., got True"),
        ({"data": (torch.full((9, 5), torch.nan).double(), None)}, "not finite"),
        (
            {"data": (torch.zeros(9, 4).double(), None)},
            "examples of the shape 4, the model takes 5",
        ),
    ],
)
def test_evidence_that_cannot_be_used_is_refused(options: dict[str, object], message: str) -> None:
    target, source, _ = independent()
    with pytest.raises(InputError, match=message):
        align(source, target, example_inputs=examples(4), **options)


def test_data_without_a_model_are_refused() -> None:
    target, source, spec = independent()
    with pytest.raises(InputError, match="activations need a model"):
        align(copied(source), copied(target), spec=spec, data=(examples(), None))


def test_the_command_line_names_the_kinds_that_there_are() -> None:
    assert _options.EVIDENCE == KINDS


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("align", ("--alpha", "auto", *FEW)),
        ("align", ("--evidence", "activations", *FEW)),
        ("align", ("--search", "ste", "--steps", "2")),
        ("merge", ("-o", "out.safetensors", "--method", "repair")),
        ("barrier", ("--points", "3")),
    ],
)
def test_images_of_a_source_are_given_as_the_model_takes_them(
    cli: Cli, folder: Path, command: str, options: tuple[str, ...]
) -> None:
    images = np.random.default_rng(0).normal(size=(50, 1, 2, 3)).astype(np.float32)
    np.savez("images.npz", x=images, y=np.arange(50) % 3)
    np.savez("flat.npz", x=images.reshape(50, 6), y=np.arange(50) % 3)
    run = (command, "1.safetensors", "0.safetensors", "--model", "nets.py:mlp")
    found = []
    for name in ("images", "flat"):
        result = cli(*run, "--input-shape", "2,6", "--data", f"{name}.npz", "--json", *options)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        found.append(document.get("distance", document.get("barrier", document.get("chosen"))))
    assert found[0] == found[1]


def test_align_on_data_from_the_command_line(cli: Cli, folder: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez("data.npz", x=generator.normal(size=(50, 6)).astype(np.float32), y=np.zeros(50, int))
    pair = ("align", "1.safetensors", "0.safetensors", *FEW)
    model = ("--model", "nets.py:mlp", "--input-shape", "2,6")
    result = cli(*pair, *model, "--data", "data.npz", "--alpha", "0.5", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["evidence"], document["alpha"]) == ("both", 0.5)
    plain = cli(*pair, *model)
    assert "without data a lower distance can be a worse merge" in " ".join(plain.stdout.split())
    shown = cli(*pair, *model, "--data", "data.npz", "--evidence", "activations")
    assert "without data" not in shown.stdout
    assert cli(*pair, *model, "--evidence", "both").exit_code == 2
    assert cli(*pair, "--data", "data.npz").exit_code == 2
