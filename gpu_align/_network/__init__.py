"""Networks on data: examples, losses and scores; traced models run op by op, and their units."""

from gpu_align._network._activations import Traces, unit_statistics
from gpu_align._network._batches import IGNORED
from gpu_align._network._data import MOST, Data
from gpu_align._network._digits import Digits, load_digits
from gpu_align._network._evaluate import BATCH_SIZE, Score, evaluate, evaluate_many
from gpu_align._network._examples import Batch, Examples
from gpu_align._network._image_layout import LastLayout
from gpu_align._network._images import fitted
from gpu_align._network._limits import Limits
from gpu_align._network._loss import Loss, class_rows, counts_classes, loss_function
from gpu_align._network._moments import Moments
from gpu_align._network._own_code import call_named, first_line, named_object
from gpu_align._network._runner import Runner
from gpu_align._network._sites import Site, find_sites, innermost, lineage, rows_of
from gpu_align._network._sources import FORMS, read_source
from gpu_align._network._task_loss import Norms, TaskLoss
from gpu_align._network._walk import Step, Walk, live_bytes

__all__ = [
    "BATCH_SIZE",
    "FORMS",
    "IGNORED",
    "MOST",
    "Batch",
    "Data",
    "Digits",
    "Examples",
    "LastLayout",
    "Limits",
    "Loss",
    "Moments",
    "Norms",
    "Runner",
    "Score",
    "Site",
    "Step",
    "TaskLoss",
    "Traces",
    "Walk",
    "call_named",
    "class_rows",
    "counts_classes",
    "evaluate",
    "evaluate_many",
    "find_sites",
    "first_line",
    "fitted",
    "innermost",
    "lineage",
    "live_bytes",
    "load_digits",
    "loss_function",
    "named_object",
    "read_source",
    "rows_of",
    "unit_statistics",
]
