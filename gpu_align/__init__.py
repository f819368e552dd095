"""gpu-align: align neural networks modulo permutation symmetry.

    from gpu_align import align
    result = align("b.safetensors", "a.safetensors")
    result.distance_before, result.distance, result.lower_bound

What a name needs is imported when it is first asked for, torch too; Triton and CuPy are imported
when a search runs on a GPU.
"""

import importlib
import importlib.metadata
import typing

if typing.TYPE_CHECKING:
    from gpu_align._align import (
        AlignmentFailure,
        AlignmentResult,
        Barycentre,
        activation_evidence,
        align,
        barycentre,
        canonicalize,
        cycle_error,
    )
    from gpu_align._assignment import (
        AssignmentProblem,
        AssignmentSolution,
        AuctionAssignment,
        AutoAssignment,
        LapxAssignment,
        ScipyAssignment,
    )
    from gpu_align._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from gpu_align._device import Backend, backends
    from gpu_align._errors import (
        AssignmentError,
        CheckpointError,
        GpuAlignError,
        InputError,
        ModelError,
        SpecError,
        UnavailableError,
    )
    from gpu_align._merge import (
        BarrierResult,
        HeadedMerge,
        LossCurve,
        LossPlane,
        MergeResult,
        PartialMerge,
        RepairResult,
        SharedBody,
        average,
        barrier,
        loss_plane,
        merge,
        merge_heads,
        partial_merge,
        repair,
        shared_body,
        slerp,
    )
    from gpu_align._network import TaskLoss
    from gpu_align._problem import METRICS, AlignmentProblem, Metric, lower_bound
    from gpu_align._proof import Proof, check_proof, prove
    from gpu_align._report import write_report as write_report
    from gpu_align._report import write_zoo_report as write_zoo_report
    from gpu_align._search import (
        Annealing,
        BeamDescent,
        Budget,
        CoordinateDescent,
        FrankWolfe,
        KBest,
        LayerwiseBeam,
        Learned,
        Noise,
        Portfolio,
        Progress,
        Recombination,
        Rounding,
        Search,
        SearchStore,
        Sinkhorn,
        StraightThrough,
        run_search,
    )
    from gpu_align._status import Status
    from gpu_align._symmetry import Permutation, PermutationSpec, chain_spec, discover
    from gpu_align._zoo import (
        AlignedNetworks,
        CheckpointAligner,
        ZooAlignment,
        ZooContents,
        ZooProgress,
        align_zoo,
        inspect_zoo,
    )

    __version__: str

__all__ = [
    "METRICS",
    "AlignedNetworks",
    "AlignmentFailure",
    "AlignmentProblem",
    "AlignmentResult",
    "Annealing",
    "AssignmentError",
    "AssignmentProblem",
    "AssignmentSolution",
    "AuctionAssignment",
    "AutoAssignment",
    "Backend",
    "BarrierResult",
    "Barycentre",
    "BeamDescent",
    "Budget",
    "Checkpoint",
    "CheckpointAligner",
    "CheckpointError",
    "CoordinateDescent",
    "FrankWolfe",
    "GpuAlignError",
    "HeadedMerge",
    "InputError",
    "KBest",
    "LapxAssignment",
    "LayerwiseBeam",
    "Learned",
    "LossCurve",
    "LossPlane",
    "MergeResult",
    "Metric",
    "ModelError",
    "Noise",
    "PartialMerge",
    "Permutation",
    "PermutationSpec",
    "Portfolio",
    "Progress",
    "Proof",
    "Recombination",
    "RepairResult",
    "Rounding",
    "ScipyAssignment",
    "Search",
    "SearchStore",
    "SharedBody",
    "Sinkhorn",
    "SpecError",
    "Status",
    "StraightThrough",
    "TaskLoss",
    "UnavailableError",
    "ZooAlignment",
    "ZooContents",
    "ZooProgress",
    "activation_evidence",
    "align",
    "align_zoo",
    "average",
    "backends",
    "barrier",
    "barycentre",
    "canonicalize",
    "chain_spec",
    "check_proof",
    "cycle_error",
    "discover",
    "inspect_zoo",
    "load_checkpoint",
    "loss_plane",
    "lower_bound",
    "merge",
    "merge_heads",
    "partial_merge",
    "prove",
    "repair",
    "run_search",
    "save_checkpoint",
    "shared_body",
    "slerp",
]

_ROOMS = (
    *("_status", "_errors", "_checkpoint", "_device", "_assignment", "_symmetry", "_problem"),
    *("_network", "_search", "_proof", "_align", "_merge", "_zoo"),
)
"""Where the names are, from the ground up, so that none loads more than what it stands on."""

_PAGES = ("write_report", "write_zoo_report")
"""Names that `import *` leaves out, as they load matplotlib."""

if not typing.TYPE_CHECKING:  # else a name that does not exist would have a type

    def __getattr__(name: str) -> object:
        if name == "__version__":
            globals()[name] = importlib.metadata.version("gpu-align")
            return globals()[name]
        rooms = ("_report",) if name in _PAGES else _ROOMS if name in __all__ else ()
        for room in rooms:
            module = importlib.import_module(f"gpu_align.{room}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PAGES, "__version__"})
