"""The work on a zoo from its source to its summary."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_align._assignment import at_most_threads
from gpu_align._checkpoint import make_folder
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._process import torch_threads
from gpu_align._symmetry import PermutationSpec, StateDict
from gpu_align._zoo._assemble import assemble, copy_beside
from gpu_align._zoo._engine import Engine
from gpu_align._zoo._families import Kind, Known, Symmetries, kinds_of
from gpu_align._zoo._find import Found, find_pieces
from gpu_align._zoo._frame import draw_sample, make_frame, sample_size
from gpu_align._zoo._pieces import PLAN, SHARDS, Failure, Piece, Shard
from gpu_align._zoo._plan import (
    TARGETS,
    Plan,
    check_same,
    load_family,
    save_family,
    shard_size,
    shards_of,
    spans_of,
)
from gpu_align._zoo._read import Scanned, scan
from gpu_align._zoo._result import ZooAlignment
from gpu_align._zoo._settings import Context, Family, Frame, MakeModel, ZooSettings
from gpu_align._zoo._shard import Done, lost_shard, read_done, run_shard
from gpu_align._zoo._spool import is_iterable_of_networks, spool
from gpu_align._zoo._summary import write_index, write_summary

_WORK = ".work"
_SCANNED = 256
_LOST = "the processes that worked on its shard died, perhaps for want of memory; align it alone"


@dataclass(frozen=True)
class ZooProgress:
    """Where the work stands.

    Attributes:
        stage: "looking at the zoo", "making targets", "aligning" or "writing the index".
        done, total: of models; of files while they are looked at.
        failed: models that could not be aligned so far.
        seconds: since the work began.
    """

    stage: str
    done: int
    total: int
    failed: int = 0
    seconds: float = 0.0


Tell = Callable[[ZooProgress], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A zoo and what is to be done with it; see `align_zoo`.

    Attributes:
        source, out: as there.
        targets: the networks that are named, or what to make of a sample.
        called: what source and target are called; the same for a job that is resumed.
        specs: that were given.
        make_model: makes what functions are compared in; None for no comparison.
        settings: that decide the output.
        engine: who does it.
        about: what is said of the engine.
        resume: whether to go on with what was begun.
        progress: is told where the work stands.
    """

    source: Any
    out: Path
    targets: Sequence[StateDict] | Frame
    called: Mapping[str, str]
    specs: Sequence[PermutationSpec]
    make_model: MakeModel | None
    settings: ZooSettings
    engine: Engine
    about: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    progress: Tell | None = None
    begun: float = field(default_factory=time.monotonic)

    def run(self) -> ZooAlignment:
        """Do all that is not done.

        Raises:
            InputError: something cannot be used; GpuAlignError: the output cannot be written.
            KeyboardInterrupt: Ctrl-C; what is committed is kept.
        """
        try:
            self.engine.open()
            plan = self._known() or self._made()
            done = self._shards(plan)
        finally:
            self.engine.close()
        self._tell("writing the index", 0, 1)
        if self.settings.layout == "same":
            assemble(self.out, plan)
            copy_beside(self.out, plan)
        write_index(self.out, plan)
        seconds = time.monotonic() - self.begun
        now = [each for each in done if each.seconds is not None]
        models = sum(each.aligned + sum(each.failed.values()) for each in now)
        speed = {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(sum(each.seconds or 0 for each in now), 3),
            "models_now": models,
            "models_per_second": round(models / max(seconds, 1e-9), 3),
        }
        data = write_summary(self.out, plan, {**self.about, **speed})
        shutil.rmtree(self.out / _WORK, ignore_errors=True)
        return ZooAlignment(self.out, data)

    @property
    def _wanted(self) -> dict[str, Any]:
        return self.settings.to_json() | dict(self.called)

    def _known(self) -> Plan | None:
        """Return the plan of a job that is resumed; None where there is none."""
        if self.resume and (self.out / PLAN).exists():
            plan = Plan.load(self.out)
            check_same(plan, self._wanted)
            return plan
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; name a folder for the aligned zoo")
        held = {path.name for path in self.out.iterdir()} if self.out.exists() else set()
        if self.resume:  # what a run leaves that was ended before it had a plan
            held = {name for name in held if name != TARGETS and not name.startswith(".gpu-align-")}
        named = isinstance(self.source, str | os.PathLike) and os.path.exists(self.source)
        if named and self.out.exists() and self.out.samefile(self.source):
            raise InputError(f"{self.out} is the source itself; name another folder for the output")
        if held - {_WORK}:
            advice = "name a new folder, or resume what was begun there"
            raise InputError(f"the folder {self.out} is not empty; {advice}")
        return None

    def _made(self) -> Plan:
        """Look at the source, make targets and write the plan; if it fails, nothing is left."""
        was_there = self.out.exists()
        try:
            return self._planned()
        except GpuAlignError:
            for name in (_WORK, TARGETS):
                shutil.rmtree(self.out / name, ignore_errors=True)
            if not was_there:
                with suppress(OSError):
                    self.out.rmdir()
            raise

    def _planned(self) -> Plan:
        model = None if self.make_model is None else self.make_model()
        found = self._found()
        scanned = self._scanned(found.pieces)
        kinds, failures = kinds_of(scanned)
        make_folder(self.out)
        targets = () if isinstance(self.targets, str) else self.targets
        known = Known(targets, self.specs, model)
        families: dict[str, dict[str, Any]] = {}
        shards: list[Shard] = []
        for kind in kinds:
            symmetries = known.of(kind, scanned[kind.pieces[0]].piece)
            if isinstance(symmetries, Failure):
                failures |= dict.fromkeys(kind.pieces, symmetries)
                continue
            units, astray = spans_of(kind, scanned, self.settings.checkpoint)
            failures |= astray
            models = sum(len(unit[0]) for unit in units)
            if not models:
                continue
            own = [each.piece for each in scanned]
            parts = [(own[unit[0].piece], unit[0].start, unit[0].stop) for unit in units]
            try:
                family = self._family(kind, symmetries, parts)
            except InputError as error:
                failures |= dict.fromkeys(kind.pieces, Failure("unusable", str(error)))
                continue
            save_family(self.out, family)
            size = shard_size(self.settings, models, kind.state)
            shards += shards_of(kind.name, units, own, size, len(shards))
            families[kind.name] = {
                "tensors": [[name, dtype, list(shape)] for name, dtype, shape in kind.signature],
                "origin": family.spec.origin,
                "checked": family.has_model,
            }
        lost = [(scanned[number].piece, failures[number]) for number in sorted(failures)]
        plan = Plan(
            self._wanted,
            str(found.root),
            found.beside,
            len(found.others),
            families,
            tuple(shards),
            (*found.failed, *lost),
        )
        plan.save(self.out)
        return plan

    def _found(self) -> Found:
        if is_iterable_of_networks(self.source):
            return spool(self.source, self.out / _WORK / "source")
        return find_pieces(self.source, self.out / _WORK / "source", runs=self.settings.runs)

    def _scanned(self, pieces: Sequence[Piece]) -> list[Scanned]:
        """Look at all pieces, in order; several processes share many."""
        some = [pieces[n : n + _SCANNED] for n in range(0, len(pieces), _SCANNED)]
        found: dict[int, Sequence[Scanned]] = {}
        done = 0
        for (number, part), result in self.engine.each(
            scan_some, self.settings.stacked, list(enumerate(some))
        ):
            lost = Failure("damaged", "the processes that looked at it died; look at it alone")
            found[number] = result or [Scanned(piece, None, lost) for piece in part]
            done += len(part)
            self._tell("looking at the zoo", done, len(pieces))
        return [each for number in range(len(some)) for each in found[number]]

    def _family(
        self, kind: Kind, symmetries: Symmetries, parts: Sequence[tuple[Piece, int, int]]
    ) -> Family:
        """Return a family with its target."""
        spec, target = symmetries.spec, symmetries.target
        if target is None:
            assert isinstance(self.targets, str)
            self._tell(f"making the {self.targets} of {kind.name}", 0, 1)
            most = sample_size(self.settings.sample, kind.state)
            with ExitStack() as stack:
                stack.enter_context(at_most_threads(1))
                stack.enter_context(torch_threads.held(single=True))
                sample = draw_sample(parts, spec, most, self.settings.seed)
                target = make_frame(self.targets, sample, spec, self.settings.of_align())
        kept = {name: spec.tensor_of(name, target).cpu() for name in spec.tensors}
        return Family(kind.name, spec, kept, symmetries.has_model)

    def _shards(self, plan: Plan) -> list[Done]:
        """Do the shards that are not done."""
        make_folder(self.out / SHARDS)
        done: list[Done] = []
        left: list[Shard] = []
        for shard in plan.shards:
            folder = self.out / SHARDS / shard.folder
            if folder.exists():
                done.append(read_done(folder))
            else:
                left.append(shard)
        families = {
            name: load_family(self.out, name, has_model=known["checked"])
            for name, known in plan.families.items()
        }
        context = Context(str(self.out), families, self.settings, self.make_model)
        total = sum(map(len, plan.shards))
        self._tell("aligning", *_counted(done, total))
        for shard, result in self.engine.each(run_shard, context, left):
            done.append(result or lost_shard(context, shard, _LOST))
            self._tell("aligning", *_counted(done, total))
        return done

    def _tell(self, stage: str, done: int, total: int, failed: int = 0) -> None:
        if self.progress is not None:
            seconds = time.monotonic() - self.begun
            self.progress(ZooProgress(stage, done, total, failed, seconds))


def scan_some(stacked: bool | None, task: tuple[int, Sequence[Piece]]) -> list[Scanned]:  # noqa: FBT001
    """Look at some pieces; a task of an engine."""
    return [scan(piece, stacked) for piece in task[1]]


def _counted(done: Sequence[Done], total: int) -> tuple[int, int, int]:
    failed = sum(sum(each.failed.values()) for each in done)
    return failed + sum(each.aligned for each in done), total, failed
