"""Failed problems: which statuses are failures, and the one place that raises for them."""

from collections.abc import Sequence

from torch import Tensor

from gpu_align._errors import AssignmentError, bullet_list
from gpu_align._status import Status
from gpu_align.kernels.auction import STATUS_OF_CODE

FAILURES = STATUS_OF_CODE[1:]


def raise_failures(status: Sequence[Status] | Tensor) -> None:
    """Raise if a problem of a batch failed.

    Codes of several calls may be accumulated on their device with `torch.maximum`, since 0 is
    the only code of success, and looked at once.

    Args:
        status: one `Status` for each problem, or [b] int64 codes of `STATUS_OF_CODE`. Reading
            them back waits for their device.

    Raises:
        AssignmentError: at least one problem failed; names the batch indices.
    """
    if isinstance(status, Tensor):
        if not bool(status.any()):
            return
        status = [STATUS_OF_CODE[code] for code in status.cpu().tolist()]
    failures = [
        f"problem {index} of the batch: {each.value}"
        for index, each in enumerate(status)
        if each in FAILURES
    ]
    if failures:
        raise AssignmentError(
            f"{len(failures)} of {len(status)} assignment problems failed; mend them, "
            f"or pass throw=False to `solve` to have the others solved.\n{bullet_list(failures)}",
            next(each for each in status if each in FAILURES),
        )
