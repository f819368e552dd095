"""Networks on data: examples, losses and scores; traced models run op by op, and their units."""

from gpu_align._network._activations import Traces, unit_statistics
from gpu_align._network._data import MOST, Data
from gpu_align._network._digits import Digits, load_digits
from gpu_align._network._evaluate import BATCH_SIZE, Score, evaluate, evaluate_many
from gpu_align._network._examples import Batch, Examples
from gpu_align._network._images import fitted
from gpu_align._network._loss import Loss, loss_function
from gpu_align._network._moments import Moments
from gpu_align._network._own_code import call_named, first_line, named_object
from gpu_align._network._sites import Site, find_sites, innermost, lineage, rows_of
from gpu_align._network._sources import FORMS, read_source
from gpu_align._network._task_loss import Norms, TaskLoss
from gpu_align._network._walk import Step, Walk, run

__all__ = [
    "BATCH_SIZE",
    "FORMS",
    "MOST",
    "Batch",
    "Data",
    "Digits",
    "Examples",
    "Loss",
    "Moments",
    "Norms",
    "Score",
    "Site",
    "Step",
    "TaskLoss",
    "Traces",
    "Walk",
    "call_named",
    "evaluate",
    "evaluate_many",
    "find_sites",
    "first_line",
    "fitted",
    "innermost",
    "lineage",
    "load_digits",
    "loss_function",
    "named_object",
    "read_source",
    "rows_of",
    "run",
    "unit_statistics",
]
