"""Searches over the alignment problem."""

from gpu_align._search._annealing import Annealing
from gpu_align._search._beam import BeamDescent
from gpu_align._search._candidates import Candidates, KBest, Noise, Rounding
from gpu_align._search._descent import CoordinateDescent
from gpu_align._search._frank_wolfe import FrankWolfe
from gpu_align._search._layerwise import LayerwiseBeam
from gpu_align._search._learned import Learned, Scorer
from gpu_align._search._loop import Outcome, run_search
from gpu_align._search._portfolio import Portfolio
from gpu_align._search._recombination import Recombination
from gpu_align._search._registry import SEARCHES
from gpu_align._search._run import Run
from gpu_align._search._search import Search
from gpu_align._search._sinkhorn import Sinkhorn
from gpu_align._search._state import Budget, Progress, ProgressCallback, State
from gpu_align._search._store import SearchStore
from gpu_align._search._straight_through import StraightThrough

__all__ = [
    "SEARCHES",
    "Annealing",
    "BeamDescent",
    "Budget",
    "Candidates",
    "CoordinateDescent",
    "FrankWolfe",
    "KBest",
    "LayerwiseBeam",
    "Learned",
    "Noise",
    "Outcome",
    "Portfolio",
    "Progress",
    "ProgressCallback",
    "Recombination",
    "Rounding",
    "Run",
    "Scorer",
    "Search",
    "SearchStore",
    "Sinkhorn",
    "State",
    "StraightThrough",
    "run_search",
]
