"""Which state dict of a file is meant, and which name of a network another one's name is."""

import argparse
import copy
from functools import cache

import pytest
import torch
from checkpoint_files import assert_same, make_torch, some_tensors
from hypothesis import given
from hypothesis import strategies as st
from marks import each_once
from torch import nn
from typer.testing import CliRunner

from gpu_align import CoordinateDescent, align, discover
from gpu_align._checkpoint import load_checkpoint, match_names, save_checkpoint
from gpu_align._cli._main import app
from gpu_align._errors import CheckpointError, SpecError

A, B, C = ({"w": torch.full((2,), value)} for value in (1.0, 2.0, 3.0))
OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}},
    "param_groups": [],
}

CHOSEN = {
    "model before its average": ({"model_ema": B, "model": A}, "model"),
    "timm": (
        {"arch": "x", "state_dict": A, "state_dict_ema": B, "optimizer": OPTIMIZER},
        "state_dict",
    ),
    "BasicSR": ({"params_ema": B, "params": A}, "params"),
    "one average": ({"params_ema": A}, "params_ema"),
    "one of any name": ({"net_g": A, "iter": 3}, "net_g"),
    "before averages of any name": ({"generator": A, "generator_ema": B}, "generator"),
    "list": ([A], "0"),
    "list inside": ({"models": [A], "epoch": 3}, "models.0"),
    "deep": ({"checkpoint": {"policy": {"actor": A}}}, "checkpoint.policy.actor"),
    "optimizers": ({"net": A, "opt": OPTIMIZER, "lr_scheduler": {"t": torch.ones(3)}}, "net"),
    "numbers beside": ({"epoch": torch.tensor(3), "encoder": A}, "encoder"),
    "callbacks": ({"encoder": A, "callbacks": {"best": torch.tensor(1.0)}}, "encoder"),
    "DeepSpeed": ({"module": A, "optimizer": OPTIMIZER, "global_steps": 3}, "module"),
    "average of averages": ({"ema": {"model": B}, "model": {"state_dict": A}}, "model.state_dict"),
}


@pytest.mark.parametrize(("content", "place"), CHOSEN.values(), ids=CHOSEN)
def test_the_only_state_dict_of_its_right_is_read(work, content, place):
    make_torch(work / "x.pt", content)
    loaded = load_checkpoint(work / "x.pt")
    assert_same(loaded.tensors, A)
    assert ".".join(map(str, loaded.content.path)) == place
    save_checkpoint(work / "y.pt", {"w": torch.zeros(2)}, like=loaded)
    written = load_checkpoint(work / "y.pt")
    assert_same(written.tensors, {"w": torch.zeros(2)})
    assert written.content.path == loaded.content.path


SEVERAL = {
    "student": ({"student": A, "teacher": B}, ["student", "teacher"]),
    "adversaries": ({"epoch": 1, "g": A, "d": B}, ["g", "d"]),
    "two of the usual names": ({"model": A, "net": B}, ["model", "net"]),
    "parts": (
        {"state_dict": {"encoder": A, "decoder": B}},
        ["state_dict.encoder", "state_dict.decoder"],
    ),
    "list": ([A, B], ["0", "1"]),
    "two averages": ({"ema_1": A, "ema_2": B}, ["ema_1", "ema_2"]),
    "three": ({"a": A, "b": B, "c": C}, ["a", "b", "c"]),
}


@pytest.mark.parametrize(("content", "places"), SEVERAL.values(), ids=SEVERAL)
def test_a_key_chooses_among_several(work, content, places):
    make_torch(work / "x.pt", content)
    listed = ", ".join(f'"{place}"' for place in places)
    with pytest.raises(CheckpointError, match=f"several entries could be the state dict: {listed}"):
        load_checkpoint(work / "x.pt")
    for place, expected in zip(places, (A, B, C), strict=False):
        loaded = load_checkpoint(work / "x.pt", key=place)
        assert_same(loaded.tensors, expected)
        save_checkpoint(work / "y.pt", {"w": torch.zeros(2)}, like=loaded)
        for other, kept in zip(places, (A, B, C), strict=False):
            now = {"w": torch.zeros(2)} if other == place else kept
            assert_same(load_checkpoint(work / "y.pt", key=other).tensors, now)
    with pytest.raises(CheckpointError, match=f'under the key "no"; choose one of {listed}'):
        load_checkpoint(work / "x.pt", key="no")


def test_a_key_reaches_what_is_not_read_otherwise(work):
    make_torch(work / "x.pt", {"model": A, "model_ema": B, "ema": {"module": C}})
    assert_same(load_checkpoint(work / "x.pt", key="model_ema").tensors, B)
    assert_same(load_checkpoint(work / "x.pt", key="ema").tensors, C)
    make_torch(work / "x.pt", {"scale": torch.ones(2), "encoder": A})
    with pytest.raises(CheckpointError, match=r'nested tensors under "encoder".*by key'):
        load_checkpoint(work / "x.pt")
    assert_same(load_checkpoint(work / "x.pt", key="encoder").tensors, A)
    save_checkpoint(work / "x.safetensors", A)
    with pytest.raises(CheckpointError, match='one state dict, none under the key "model"'):
        load_checkpoint(work / "x.safetensors", key="model")


def test_a_stale_average_is_warned_of(work):
    make_torch(work / "x.pt", {"state_dict": A, "ema": {"model": B}, "best": {"w": torch.ones(3)}})
    stale = "are copied unchanged: they refer to the old order of units; reorder them too, by key"
    assert load_checkpoint(work / "x.pt").warnings == (
        f'tensors in "ema" {stale} "ema.model"',
        f'tensors in "best" {stale} "best"',
    )


def test_one_dict_in_many_places_ends(work):
    node = [A, A]
    for _ in range(40):
        node = [node, node, {"x": node}]
    make_torch(work / "x.pt", {"deep": node, "model": A})
    assert_same(load_checkpoint(work / "x.pt").tensors, A)


NAMES = ["0.weight", "0.bias", "2.weight", "2.num_batches_tracked"]
WRAPPED = {
    "DataParallel": "module.{}",
    "compiled": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "compiled inside": "model._orig_mod.module.{}",
    "FSDP": "_fsdp_wrapped_module.model.{}",
    "Lightning": "model.{}",
    "own prefix": "backbone.encoder.{}",
    "none": "{}",
}


@pytest.mark.parametrize("form", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("other", WRAPPED.values(), ids=WRAPPED)
def test_names_match_through_wrappers(form, other):
    prefixes = [f.replace("{}", "") for f in (form, other)]
    bare = [".".join(p for p in x.split(".") if p[:1] != "_" and p != "module") for x in prefixes]
    state, wanted = ([f.format(name) for name in NAMES] for f in (form, other))
    expected = dict(zip(wanted, state, strict=True))
    if bare[0] and bare[1] and bare[0] != bare[1]:
        assert match_names(state, wanted) is None  # two prefixes: not the same network's
    else:
        assert match_names(state, wanted) == expected


def test_counts_may_be_missing():
    assert match_names(["module.0.weight"], ["0.weight", "0.num_batches_tracked"]) == {
        "0.weight": "module.0.weight"
    }
    state = ["n_averaged", "module.0.weight", "module.0.num_batches_tracked"]
    assert match_names(state, ["0.weight"]) == {"0.weight": "module.0.weight"}


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (["a.weight"], ["b.weight"]),
        (["0.weight"], ["0.weight", "0.bias"]),
        (["module.0.weight", "0.weight"], ["x.0.weight"]),
        (["student.0.weight", "teacher.0.weight"], ["0.weight"]),
        ([], ["0.weight"]),
        (["0.weight"], []),
        (["x0.weight"], ["0.weight"]),
    ],
)
def test_what_is_no_match_is_none(state, wanted):
    assert match_names(state, wanted) is None


def test_the_usual_prefix_goes_before_others():
    state = ["model.0.weight", "model_ema.0.weight", "criterion.weight"]
    assert match_names(state, ["0.weight"]) == {"0.weight": "model.0.weight"}


PARTS = st.lists(st.sampled_from(["a", "b", "0", "module", "_orig_mod", "model"]), max_size=3)


@given(
    PARTS,
    PARTS,
    st.lists(st.sampled_from(["w", "b", "x.w", "x.b", "y.0.w"]), min_size=1, unique=True),
)
def test_matches_are_one_to_one(first, second, names):
    state, wanted = ([".".join([*front, name]) for name in names] for front in (first, second))
    matched = match_names(state, wanted)
    if matched is not None:
        assert list(matched) == wanted
        assert len(set(matched.values())) == len(wanted)
        assert set(matched.values()) <= set(state)


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)
    )


@cache
def traced_spec():
    return discover(net(0).eval(), torch.randn(2, 6))


FORMS = {
    "DataParallel": lambda m: {f"module.{k}": t for k, t in m.state_dict().items()},
    "Lightning": lambda m: {
        "state_dict": {f"model.{k}": t for k, t in m.state_dict().items()},
        "epoch": 3,
    },
    "average": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "old torch": lambda m: {k: t for k, t in m.state_dict().items() if "num_batches" not in k},
    "old DataParallel": lambda m: {
        f"module.{k}": t for k, t in m.state_dict().items() if "num_batches" not in k
    },
    "plain": lambda m: m.state_dict(),
}


@pytest.mark.parametrize(
    ("form", "other"), each_once(FORMS, ["plain", "DataParallel", "old torch"])
)
@pytest.mark.parametrize("traced", [False, True])
def test_wrapped_checkpoints_are_aligned_and_keep_their_names(work, form, other, traced):
    source, spec = net(1), traced_spec()
    make_torch(work / "b.pt", FORMS[form](source))
    make_torch(work / "a.pt", FORMS[other](net(2)))
    result = align(
        work / "b.pt", work / "a.pt", spec=spec if traced else None, search=CoordinateDescent()
    )
    loaded = load_checkpoint(work / "b.pt")
    names = set(result.state_dict) | ({"n_averaged"} & set(loaded.tensors))
    assert names == set(loaded.tensors)
    plain = align(source.state_dict(), net(2).state_dict(), spec=spec, search=CoordinateDescent())
    assert result.distance == plain.distance
    save_checkpoint(work / "out.pt", result.state_dict, like=loaded)
    assert_same(load_checkpoint(work / "out.pt").tensors, dict(result.state_dict))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_command_keeps_names(work, monkeypatch, form):
    monkeypatch.chdir(work)
    make_torch(work / "b.pt", form(net(1)))
    make_torch(work / "a.pt", net(2).state_dict())
    (work / "nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(6, 9), "
        "nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).eval()\n"
    )
    model = ["--model", "nets.py:make", "--input-shape", "2,6", "--search", "descent"]
    arguments = ["align", "b.pt", "a.pt", "-o", "out.pt", "--permutation", "p.safetensors", *model]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    before, after = (torch.load(work / name, weights_only=True) for name in ("b.pt", "out.pt"))
    assert list(before) == list(after)
    done = CliRunner().invoke(app, ["apply", "b.pt", "p.safetensors", "-o", "again.pt"])
    assert done.exit_code == 0, done.output
    assert_same(
        load_checkpoint(work / "again.pt").tensors, load_checkpoint(work / "out.pt").tensors
    )


def test_the_command_takes_a_key(work, monkeypatch):
    monkeypatch.chdir(work)
    make_torch(work / "b.pt", {"student": net(1).state_dict(), "teacher": net(3).state_dict()})
    make_torch(work / "a.pt", net(2).state_dict())
    arguments = ["align", "b.pt", "a.pt", "-o", "out.pt", "--search", "descent"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert '"student", "teacher"; choose one by key (--key)' in refused.output
    done = CliRunner().invoke(app, [*arguments, "--key", "student", "--target-key", ""])
    assert done.exit_code == 0, done.output
    before, after = (load_checkpoint(work / n, key="teacher").tensors for n in ("b.pt", "out.pt"))
    assert_same(after, before)
    before, after = (load_checkpoint(work / n, key="student").tensors for n in ("b.pt", "out.pt"))
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_other_missing_buffers_are_still_refused():
    state = {k: t for k, t in net(1).state_dict().items() if "running_mean" not in k}
    with pytest.raises(SpecError, match="running_mean"):
        align(state, net(2).state_dict(), spec=traced_spec())


def test_sources_stay_as_they_are():
    state = FORMS["average"](net(1))
    kept = copy.deepcopy(state)
    result = align(state, net(2).state_dict(), search=CoordinateDescent())
    assert list(result.state_dict) == [*[k for k in kept if k != "n_averaged"], "n_averaged"]
    assert_same(state, kept)
    assert_same({"n": result.state_dict["n_averaged"]}, {"n": kept["n_averaged"]})


def test_arguments_beside_a_wrapped_state_dict_are_kept(work):
    saved = {"state_dict": FORMS["DataParallel"](net(1)), "args": argparse.Namespace(arch="x")}
    torch.save(saved, work / "b.pt")
    loaded = load_checkpoint(work / "b.pt").named_like(net(0).state_dict())
    assert set(loaded.tensors) == set(net(0).state_dict())
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=False)
    assert written["args"] == saved["args"]
    assert_same(written["state_dict"], saved["state_dict"])


def test_plain_tensors_are_not_renamed(work):
    make_torch(work / "x.pt", some_tensors())
    loaded = load_checkpoint(work / "x.pt")
    assert loaded.named_like(["other.weight"]).tensors.keys() == loaded.tensors.keys()
