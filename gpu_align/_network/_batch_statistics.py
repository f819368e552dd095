"""Batch norms that normalise by the statistics of the batch, whatever is stored."""

from typing import Any

from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

_ARGUMENTS = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)


class BatchStatistics(TorchFunctionMode):
    """Within it batch norms use the mean and variance of what they are given, and store nothing.

    A network halfway between two others has other statistics than their average: this is their
    re-estimation on the batch (Jordan et al., REPAIR, ICLR 2023, section 2).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is batch_norm:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            return func(**given | {"running_mean": None, "running_var": None, "training": True})
        return func(*args, **kwargs)
