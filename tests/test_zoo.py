"""Zoos: every model gets what align gives it alone, and one that fails is a row."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from zoos import (
    State,
    files_of,
    mlp,
    planted,
    stack,
    state,
    write_folder,
    write_trial,
)

from gpu_align import (
    InputError,
    Permutation,
    ZooAlignment,
    ZooProgress,
    align,
    align_zoo,
    chain_spec,
    load_checkpoint,
    save_checkpoint,
)

REFERENCE = state(0, 5, 6, 2)  # of one group, so that weight matching is exact


def models(zoo: ZooAlignment) -> dict[str, State]:
    """Return the aligned models by their names."""
    rows = zoo.rows("name", "shard", "row")
    found = {}
    for name, shard, row in zip(*rows.values(), strict=True):
        if row is not None:
            held = load_file(zoo.path / "shards" / f"{shard:06d}" / "models.safetensors")
            found[name] = {key: tensor[row] for key, tensor in held.items()}
    return found


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_every_model_gets_what_align_gives_it_alone(tmp_path: Path) -> None:
    reference, *states = [state(number, 3, 6, 5, 2) for number in range(8)]
    source = write_folder(tmp_path / "zoo", states)
    zoo = align_zoo(source, reference, tmp_path / "out", workers=1, shard=3)
    found, rows = models(zoo), zoo.rows()
    assert rows["status"] == ["aligned"] * 7
    for number, one in enumerate(states):
        alone = align(one, reference, search="descent")
        assert same(found[f"net{number:03d}.safetensors"], dict(alone.state_dict))
        assert rows["distance"][number] == pytest.approx(alone.distance, rel=1e-12)
        assert rows["distance_before"][number] == pytest.approx(alone.distance_before, rel=1e-12)
        assert rows["lower_bound"][number] == pytest.approx(alone.lower_bound, abs=1e-9)
        optimal = all(group.is_optimal for group in alone.groups)
        assert rows["optimal_groups"][number] == optimal


def test_planted_permutations_are_undone_and_kept(tmp_path: Path) -> None:
    near, moved = planted(5, REFERENCE)
    save_file(stack(moved), tmp_path / "stack.safetensors")
    zoo = align_zoo(tmp_path / "stack.safetensors", REFERENCE, tmp_path / "out", workers=1)
    found = models(zoo)
    each = Permutation.load_each(
        tmp_path / "out" / "shards" / "000000" / "permutations.safetensors"
    )
    for number in range(5):
        name = f"stack.safetensors[{number}]"
        assert same(found[name], near[number])
        assert same(each[number].apply(moved[number]), near[number])


@pytest.mark.parametrize("kind", ["stack", "shards", "tar", "glob", "index", "list", "pairs"])
def test_sources_of_all_kinds_give_the_same(tmp_path: Path, kind: str) -> None:
    near, moved = planted(6, REFERENCE)
    source: object = tmp_path / "source"
    if kind == "stack":
        source = tmp_path / "stack.safetensors"
        save_file(stack(moved), source)
    elif kind == "shards":
        (tmp_path / "source").mkdir()
        save_file(stack(moved[:4]), tmp_path / "source" / "0.safetensors")
        save_file(stack(moved[4:]), tmp_path / "source" / "1.safetensors")
    elif kind == "tar":
        write_folder(tmp_path / "inside", moved, ".pt")
        source = tmp_path / "zoo.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tmp_path / "inside", "inside")
    elif kind == "glob":
        write_folder(tmp_path / "source", moved)
        source = str(tmp_path / "source" / "net*.safetensors")
    elif kind == "index":
        source = write_index(tmp_path / "source", stack(moved))
    elif kind == "list":
        source = (one for one in moved)
    else:
        source = {f"net {number}": one for number, one in enumerate(moved)}
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1)  # type: ignore[arg-type]
    found = list(models(zoo).values())
    assert len(found) == 6
    assert all(same(one, expected) for one, expected in zip(found, near, strict=True))


def test_a_stack_in_several_files_is_written_like_it(tmp_path: Path) -> None:
    near, moved = planted(4, REFERENCE)
    source = write_index(tmp_path / "source", stack(moved))
    align_zoo(source, REFERENCE, tmp_path / "out", workers=1, layout="same")
    folder = tmp_path / "out" / "models"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in source.parent.iterdir())
    assert (folder / source.name).read_bytes() == source.read_bytes()
    found = load_file(folder / "part-0.safetensors") | load_file(folder / "part-1.safetensors")
    assert same(found, stack(near))


def write_index(folder: Path, tensors: State) -> Path:
    folder.mkdir()
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    return index


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "zoo", [state(number, 5, 6, 2) for number in range(9)])
    for workers in (1, 2):
        align_zoo(source, "barycentre", tmp_path / f"{workers}", workers=workers, shard=2)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_what_cannot_be_aligned_is_a_row_with_its_reason(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "zoo", [state(number, 5, 6, 2) for number in range(1, 9)])
    (source / "net000.safetensors").write_bytes(b"not a checkpoint")
    whole = (source / "net001.safetensors").read_bytes()
    (source / "net001.safetensors").write_bytes(whole[:-10])
    bad = state(3, 5, 6, 2)
    bad["0.weight"][1, 1] = float("nan")
    save_checkpoint(source / "net002.safetensors", bad)
    save_checkpoint(source / "net003.safetensors", state(4, 5, 7, 2))
    (source / "notes.txt").write_text("no model", encoding="utf-8")
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1)
    rows = zoo.rows("name", "status", "reason")
    kinds = dict(zip(rows["name"], rows["status"], strict=True))
    assert [kinds[f"net{n:03d}.safetensors"] for n in range(4)] == [
        *("damaged", "damaged", "unusable", "foreign"),
    ]
    assert zoo.failed == {"damaged": 2, "unusable": 1, "foreign": 1}
    reasons = dict(zip(rows["name"], rows["reason"], strict=True))
    assert "1 NaN or infinite entries" in reasons["net002.safetensors"]
    assert zoo.aligned == 4
    clean = align_zoo(
        [state(number, 5, 6, 2) for number in range(5, 9)], REFERENCE, tmp_path / "clean", workers=1
    )
    assert all(
        same(one, two)
        for one, two in zip(models(zoo).values(), models(clean).values(), strict=True)
    )


def test_damaged_rows_of_a_stack_do_not_touch_the_others(tmp_path: Path) -> None:
    near, moved = planted(5, REFERENCE)
    held = stack(moved)
    held["2.bias"][2] = float("inf")
    save_file(held, tmp_path / "stack.safetensors")
    zoo = align_zoo(
        tmp_path / "stack.safetensors", REFERENCE, tmp_path / "out", workers=1, layout="same"
    )
    assert zoo.rows("status")["status"] == ["aligned"] * 2 + ["unusable"] + ["aligned"] * 2
    out = load_file(tmp_path / "out" / "models" / "stack.safetensors")
    for number in (0, 1, 3, 4):
        assert same({n: t[number] for n, t in out.items()}, near[number])
    assert same({n: t[2] for n, t in out.items()}, {n: t[2] for n, t in held.items()})


def test_mixed_architectures_are_families_of_their_own(tmp_path: Path) -> None:
    other = state(0, 4, 5, 2)
    near, moved = planted(3, REFERENCE)
    wide, mixed = planted(4, other)
    source = write_folder(tmp_path / "zoo", [*moved, *mixed])
    zoo = align_zoo(source, [REFERENCE, other], tmp_path / "out", workers=1)
    assert sorted(f["models"] for f in zoo.data["families"].values()) == [3, 4]
    assert all(
        same(one, expected)
        for one, expected in zip(models(zoo).values(), [*near, *wide], strict=True)
    )


def test_checkpoints_of_a_run_get_one_permutation(tmp_path: Path) -> None:
    near, moved = planted(6, REFERENCE)
    shuffle = [Permutation.random(chain_spec(REFERENCE), seed=number) for number in (40, 41)]
    for run in range(2):
        trial = [shuffle[run].apply(one) for one in near[3 * run : 3 * run + 3]]
        write_trial(tmp_path / "tune" / f"trial_{run}", trial, rate=0.1 * (1 + run))
    zoo = align_zoo(tmp_path / "tune", REFERENCE, tmp_path / "out", workers=1, layout="same")
    rows = zoo.rows()
    assert rows["status"] == ["aligned"] * 6
    facts = dict(zip(rows["name"], map(json.loads, rows["facts"]), strict=True))
    assert facts["trial_1/checkpoint_000001"]["params"] == {"lr": 0.2}
    assert facts["trial_1/checkpoint_000001"]["result"]["loss"] == 0.5
    for run in range(2):
        for number in range(3):
            path = tmp_path / "out" / "models" / f"trial_{run}" / f"checkpoint_{number:06d}"
            found = torch.load(path / "checkpoint.pt", weights_only=True)
            assert found["epoch"] == number
            assert same(found["model_state_dict"], near[3 * run + number])
        params = tmp_path / "out" / "models" / f"trial_{run}" / "params.json"
        assert json.loads(params.read_text()) == {"lr": 0.1 * (1 + run)}
    assert moved  # the planted orders of the single models are not used here


@pytest.mark.parametrize("checkpoint", ["last", "first", "net001"])
def test_the_permutation_of_a_run_is_that_of_the_named_checkpoint(
    tmp_path: Path, checkpoint: str
) -> None:
    states = [state(number, 5, 6, 2) for number in range(20, 23)]
    source = write_folder(tmp_path / "zoo" / "run", states).parent
    zoo = align_zoo(
        source, REFERENCE, tmp_path / "out", workers=1, runs=True, checkpoint=checkpoint
    )
    leader = {"last": 2, "first": 0, "net001": 1}[checkpoint]
    permutation = align(states[leader], REFERENCE, search="descent").permutation
    found = models(zoo)
    for number, one in enumerate(states):
        assert same(found[f"run/net{number:03d}.safetensors"], permutation.apply(one))


def test_the_same_layout_keeps_what_is_around_the_weights(tmp_path: Path) -> None:
    near, moved = planted(2, REFERENCE)
    (tmp_path / "zoo" / "a").mkdir(parents=True)
    torch.save({"state_dict": moved[0], "epoch": 3}, tmp_path / "zoo" / "a" / "x.pt")
    save_file(moved[1], tmp_path / "zoo" / "y.safetensors", {"who": "me"})
    align_zoo(tmp_path / "zoo", REFERENCE, tmp_path / "out", workers=1, layout="same")
    first = torch.load(tmp_path / "out" / "models" / "a" / "x.pt", weights_only=True)
    assert first["epoch"] == 3
    assert same(first["state_dict"], near[0])
    second = load_checkpoint(tmp_path / "out" / "models" / "y.safetensors")
    assert second.metadata == {"who": "me"}
    assert same(dict(second.tensors), near[1])


@pytest.mark.parametrize("frame", ["medoid", "barycentre"])
def test_models_come_closer_to_what_is_made_of_a_sample(tmp_path: Path, frame: str) -> None:
    _, moved = planted(12, REFERENCE, noise=0.05)
    zoo = align_zoo(moved, frame, tmp_path / "out", workers=1)
    [family] = zoo.data["families"].values()
    spread = {side: sum(t[side] for t in family["spread"].values()) for side in ("before", "after")}
    expected = 0.05**2 * sum(t.numel() for t in REFERENCE.values())
    assert family["mean_distance"] < 3 * expected < 0.5 * family["mean_distance_before"]
    assert spread["after"] == pytest.approx(expected, rel=0.3)
    assert spread["before"] > 5 * spread["after"]


def test_functions_are_compared_in_the_model(tmp_path: Path) -> None:
    model = mlp(5, 6, 2)
    states = [state(number, 5, 6, 2) for number in range(4)]
    zoo = align_zoo(
        *(states, REFERENCE, tmp_path / "out"),
        model=model,
        example_inputs=torch.randn(4, 5),
        workers=1,
    )
    differences = zoo.rows("function_difference")["function_difference"]
    assert max(differences) < 1e-9
    assert zoo.rows("search_status")["search_status"] == ["converged"] * 4


def test_a_model_whose_function_would_change_is_not_written(tmp_path: Path) -> None:
    class Weighted(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self[1](self[0](x))
            return self[2](hidden * torch.arange(1, 7))

    model = Weighted(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    states = [state(number, 3, 6, 2) for number in range(4)]
    zoo = align_zoo(
        *(states, state(9, 3, 6, 2), tmp_path / "out"),
        spec=chain_spec(states[0]),  # which does not see that units have their places
        model=model,
        example_inputs=torch.randn(4, 3),
        workers=1,
    )
    assert zoo.failed.get("changed", 0) >= 3
    assert "computes another function" in next(filter(None, zoo.rows("reason")["reason"]))


def test_work_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "zoo", [state(number, 5, 6, 2) for number in range(8)])
    told: list[ZooProgress] = []

    def stop(progress: ZooProgress) -> None:
        told.append(progress)
        if progress.stage == "aligning" and progress.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2, progress=stop)
    kept = files_of(tmp_path / "out")
    assert sum(name.endswith("models.safetensors") for name in kept) == 2
    with pytest.raises(InputError, match="not empty; name a new folder, or resume"):
        align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2)
    with pytest.raises(InputError, match="other settings: seed differ"):
        align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2, seed=1, resume=True)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").rglob("*.*")}
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1, shard=2, resume=True)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert zoo.aligned == 8
    align_zoo(source, REFERENCE, tmp_path / "whole", workers=1, shard=2)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_work_that_ended_before_its_plan_is_begun_anew(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "zoo", [state(number, 5, 6, 2) for number in range(3)])
    (tmp_path / "out" / "targets").mkdir(parents=True)
    (tmp_path / "out" / ".gpu-align-01234567-1-ab.tmp").write_bytes(b"half a plan")
    (tmp_path / "out" / ".work").mkdir()
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1, resume=True)
    assert zoo.aligned == 3


def test_arguments_of_a_wrong_kind_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = write_folder(tmp_path / "zoo", [state(1, 5, 6, 2)])
    for arguments, message in (
        ({"layout": "other"}, "layout among shards, same"),
        ({"engine": "other"}, "engine among local, ray"),
        ({"address": "auto"}, "address is of a Ray cluster"),
        ({"workers": 0}, "workers=None or a number above 0"),
        ({"sample": 0}, "sample as a number above 0"),
        ({"search": "other"}, "search among"),
    ):
        with pytest.raises(InputError, match=message):
            align_zoo(source, REFERENCE, out, **arguments)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no checkpoints"):
        align_zoo(tmp_path / "empty", REFERENCE, out, workers=1)
    with pytest.raises(InputError, match="no such file or folder"):
        align_zoo(tmp_path / "missing", REFERENCE, out, workers=1)
    with pytest.raises(InputError, match="call align"):
        align_zoo(mlp(3, 6, 2), REFERENCE, out, workers=1)  # type: ignore[arg-type]


def test_folders_of_hugging_face_keep_what_lies_beside_the_weights(tmp_path: Path) -> None:
    near, moved = planted(2, REFERENCE)
    for number, one in enumerate(moved):
        folder = tmp_path / "zoo" / f"model-{number}"
        folder.mkdir(parents=True)
        save_file(one, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "of my own"}', encoding="utf-8")
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    zoo = align_zoo(
        *(tmp_path / "zoo", REFERENCE, tmp_path / "out"),
        spec=chain_spec(REFERENCE),
        workers=1,
        layout="same",
    )
    assert zoo.rows("name", "status") == {
        "name": ["model-0", "model-1"],
        "status": ["aligned", "aligned"],
    }
    for number in range(2):
        folder = tmp_path / "out" / "models" / f"model-{number}"
        assert sorted(path.name for path in folder.iterdir()) == [
            *("config.json", "model.safetensors", "tokenizer.json"),
        ]
        assert same(dict(load_checkpoint(folder).tensors), near[number])


def test_half_precision_stays(tmp_path: Path) -> None:
    near, moved = planted(3, {name: tensor.half() for name, tensor in REFERENCE.items()})
    moved = [{name: tensor.half() for name, tensor in one.items()} for one in moved]
    source = write_folder(tmp_path / "zoo", moved, ".pt")
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1, layout="same")
    assert zoo.aligned == 3
    for number in range(3):
        found = torch.load(tmp_path / "out" / "models" / f"net{number:03d}.pt", weights_only=True)
        assert same(found, {name: tensor.half() for name, tensor in near[number].items()})


@pytest.mark.slow
def test_one_in_a_hundred_of_each_kind_of_failure(tmp_path: Path) -> None:
    near, moved = planted(300, REFERENCE)
    source = write_folder(tmp_path / "zoo", moved)
    bad = range(0, 9)
    for number in bad[:3]:
        path = source / f"net{number:03d}.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    for number in bad[3:6]:
        broken = {**moved[number], "0.weight": torch.full((6, 5), float("nan"))}
        save_checkpoint(source / f"net{number:03d}.safetensors", broken)
    for number in bad[6:]:
        save_checkpoint(source / f"net{number:03d}.safetensors", state(number, 5, 4, 2))
    zoo = align_zoo(source, REFERENCE, tmp_path / "out", workers=1)
    assert zoo.failed == {"damaged": 3, "unusable": 3, "foreign": 3}
    rows = zoo.rows("status", "reason")
    said = zip(rows["status"], rows["reason"], strict=True)
    assert all((status == "aligned") == (reason is None) for status, reason in said)
    found = models(zoo)
    for number in range(9, 300):
        assert same(found[f"net{number:03d}.safetensors"], near[number])
