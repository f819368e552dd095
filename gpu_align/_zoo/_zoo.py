"""align_zoo: thousands to millions of networks, brought to one reference."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gpu_align._align import Model, Network, Settings, checked_spec, state_of
from gpu_align._errors import InputError
from gpu_align._problem import Metric, hash_tensors
from gpu_align._search import Search
from gpu_align._symmetry import Kept, PermutationSpec
from gpu_align._zoo._engine import Engine, LocalEngine, RayEngine, find_ray
from gpu_align._zoo._job import Job, Tell
from gpu_align._zoo._result import ZooAlignment
from gpu_align._zoo._settings import Frame, Layout, ZooSettings
from gpu_align._zoo._table import arrow

ENGINES = ("local", "ray")


def align_zoo(
    source: str | os.PathLike[str] | Iterable[Any] | Mapping[Any, Any],
    target: Network | Sequence[Network] | Frame,
    out: str | os.PathLike[str],
    *,
    spec: PermutationSpec | Sequence[PermutationSpec] | None = None,
    model: nn.Module | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    search: Search | str | None = "descent",
    metric: str | Metric = "l2",
    device: str = "auto",
    seed: int = 0,
    layout: Layout = "shards",
    checkpoint: str = "last",
    runs: bool = False,
    stacked: bool | None = None,
    sample: int = 256,
    shard: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    progress: Tell | None = None,
) -> ZooAlignment:
    """Align a collection of any size, shard after shard, in bounded memory.

    A model that fails is a row of the index with its reason, never the end. No answer depends on
    the engine, on the number of workers or on the order.

    Args:
        source: a folder or a glob of checkpoints, trials of Ray Tune, folders of Hugging Face, a
            safetensors file with a stack of models, a folder of these, a tar archive of any; or an
            iterable of state dicts, or of pairs of a name and one.
        target: a network, or one for each architecture; or, of a sample of each, "medoid" or
            "barycentre".
        out: the folder of the output, made anew.
        spec: the symmetries, or several; by default found as `align` does for each architecture.
        model: the module that symmetries are found and functions compared in; by default the
            target, if it is one.
        example_inputs, outputs: as for `align`.
        search: as for `align`; weight matching by default, None for the portfolio.
        metric, device, seed: as for `align`.
        layout: "shards" of stacked models with an index, or the "same" as the source's.
        checkpoint: "last", "first" or the name of the one of a training run on which the
            permutation for all of its checkpoints is found.
        runs: whether the checkpoints in each folder are of one training run, as those in a trial of
            Ray Tune are.
        stacked: whether safetensors files are stacks of models; None to tell by their shapes.
        sample: models from which a medoid or a barycentre is made.
        shard: models of a shard; by default by their number and size.
        engine: "local" for processes of this machine, "ray" for a Ray cluster.
        address: of the cluster; by default one on this machine.
        workers: processes at work; by default one for each CUDA device, else for each CPU.
        resume: go on with what the same call has begun in `out`.
        progress: called as the work goes on.

    Raises:
        InputError: an argument cannot be used; its children say what is wrong.
        GpuAlignError: the output cannot be written.
        KeyboardInterrupt: Ctrl-C; what is committed is kept for `resume`.
    """
    arrow()
    checked = Settings.of(search, metric, device, seed, None, None)
    settings = ZooSettings(
        search=checked.search,
        metric=metric,
        device=device,
        seed=checked.seed,
        layout=layout,
        checkpoint=checkpoint,
        sample=sample,
        shard=shard,
        stacked=stacked,
        runs=runs,
    )
    specs = [spec] if isinstance(spec, PermutationSpec) else list(spec or ())
    targets, module = _targets(target, model)
    make_model = None
    if module is not None and example_inputs is not None:
        make_model = partial(Model, module, example_inputs, outputs)
    return Job(
        source=source,
        out=Path(out),
        targets=targets,
        called={"source": called(source), "target": called_targets(targets)},
        specs=[each for each in map(checked_spec, specs) if each is not None],
        make_model=make_model,
        settings=settings,
        engine=make_engine(engine, address, workers, device),
        about={"engine": engine, "workers": workers},
        resume=resume,
        progress=progress,
    ).run()


def _targets(
    target: Any, model: nn.Module | None
) -> tuple[Sequence[Mapping[str, Tensor]] | Frame, nn.Module | None]:
    """Return the state dicts to align to, or the name of what is made; and the module, if any."""
    if isinstance(target, str) and target in get_args(Frame):
        return target, model  # type: ignore[return-value]
    if isinstance(target, nn.Module):
        return [state_of(target)], target if model is None else model
    if isinstance(target, list | tuple):
        if not target:
            raise InputError('expected at least one target, got none; pass "barycentre", perhaps')
        return [state_of(network) for network in target], model
    return [state_of(target)], model


def called(source: Any) -> str:
    """Return what a source is called: its path; networks that come one by one have no name."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "an iterable"


def called_targets(
    targets: Sequence[Mapping[str, Tensor]] | Frame, names: Sequence[str] = ()
) -> str:
    """Return what targets are called: by their names, and a hash that tells others apart."""
    if isinstance(targets, str):
        return targets
    named = ", ".join(names) or ("a network" if len(targets) == 1 else f"{len(targets)} networks")
    return f"{named} ({hash_tensors(targets)[:16]})"


def make_engine(
    engine: str, address: str | None, workers: int | None, device: str | torch.device
) -> Engine:
    """Return who does the work.

    Raises:
        InputError: there is no such engine, or an argument is not for it; UnavailableError: Ray is
            not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"expected an engine among {', '.join(ENGINES)}, got {engine!r}")
    if engine == "local":
        if address is not None:
            raise InputError(
                f"an address is of a Ray cluster, got {address!r} with the engine local; leave it "
                'out, or use engine="ray"'
            )
        return LocalEngine.of(workers, str(device))
    find_ray()
    LocalEngine.of(workers, "cpu")  # for its check
    gpus = 1 if str(device) == "cuda" else 0
    return RayEngine(address, workers, gpus)
