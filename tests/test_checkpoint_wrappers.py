"""What surrounds a state dict in a torch file is kept."""

from collections import OrderedDict

import pytest
import torch
from checkpoint_files import assert_same, some_tensors

from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._errors import CheckpointError


def trained_module():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights"])
def test_wrapper_is_kept(work, key):
    module, optimizer = trained_module()
    saved = {
        "epoch": 3,
        key: module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": torch.tensor(0.5),
        "ema": {"w": torch.ones(2)},
        "names": ["a", None, (1, 2.5)],
    }
    torch.save(saved, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert loaded.content.path == (key,)
    assert_same(loaded.tensors, module.state_dict())
    assert [warning.split(" is")[0].split(" are")[0] for warning in loaded.warnings] == [
        'optimizer state "optimizer"',
        'tensors in "ema"',
    ]
    assert all("copied unchanged" in warning for warning in loaded.warnings)
    new = {
        name: tensor.flip(0) if tensor.dim() else tensor for name, tensor in loaded.tensors.items()
    }
    save_checkpoint(work / "out.pt", new, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert list(written) == list(saved)
    assert written["epoch"] == 3
    assert written["names"] == ["a", None, (1, 2.5)]
    assert written["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert torch.equal(written["best"], saved["best"])
    assert type(written[key]) is OrderedDict
    assert written[key]._metadata == saved[key]._metadata
    assert_same(written[key], new)
    assert_same(loaded.tensors, module.state_dict())


def test_nested_wrapper_is_kept(work):
    torch.save({"model": {"state_dict": some_tensors(), "tag": "x"}, "epoch": 1}, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert loaded.content.path == ("model", "state_dict")
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert written["epoch"] == 1
    assert written["model"]["tag"] == "x"
    assert_same(written["model"]["state_dict"], some_tensors())
    with pytest.raises(CheckpointError, match=r'no place for "epoch", "model\.tag".*a \.pt output'):
        save_checkpoint(work / "out.safetensors", loaded.tensors, like=loaded)


def test_entries_that_are_no_tensors_are_kept(work):
    state = {"w": torch.ones(2), "version": 2, "norm._extra_state": {"scale": torch.ones(3)}}
    torch.save(state, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert list(loaded.tensors) == ["w"]
    assert len(loaded.warnings) == 1
    save_checkpoint(work / "out.pt", {"w": torch.zeros(2)}, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    assert list(written) == list(state)
    assert written["version"] == 2
    assert torch.equal(written["norm._extra_state"]["scale"], torch.ones(3))
    assert torch.equal(written["w"], torch.zeros(2))


def test_parameters_stay_parameters(work):
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    state = {
        "w": torch.nn.Parameter(torch.ones(2)),
        "f": frozen,
        "g": torch.ones(1).requires_grad_(),
    }
    torch.save(state, work / "in.pt")
    loaded = load_checkpoint(work / "in.pt")
    assert not any(tensor.requires_grad for tensor in loaded.tensors.values())
    save_checkpoint(work / "out.pt", loaded.tensors, like=loaded)
    written = torch.load(work / "out.pt", weights_only=True)
    kinds = [(type(tensor), tensor.requires_grad) for tensor in written.values()]
    assert kinds == [(type(tensor), tensor.requires_grad) for tensor in state.values()]
