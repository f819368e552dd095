"""TaskLoss: what a network loses on data, differentiable in its state dict."""

import hashlib
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from gpu_align._device import RandomStream
from gpu_align._errors import InputError
from gpu_align._network._data import Data
from gpu_align._network._examples import Batch, Examples
from gpu_align._network._loss import Loss, loss_function, reads_main_output, weight
from gpu_align._network._runner import Runner
from gpu_align._process import MODULES, full_precision
from gpu_align._symmetry import StateDict, unwrapped

Norms = Literal["batch", "stored"]
_NORMS = ("batch", "stored")


class TaskLoss:
    """The loss of a network on data, of any state dict.

    Attributes:
        fit: examples whose gradients are followed.
        held: examples that judge, the first `judged` of those held back.
        batch_size: examples of a gradient, and of what is run at once.
        norms: "batch": batch norms use the statistics of the batch, which is their re-estimation;
            "stored": those of the state dict.
    """

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        data: object,
        loss: str | Loss = "auto",
        *,
        batch_size: int = 500,
        judged: int = 2000,
        norms: Norms = "batch",
        seed: int = 0,
    ) -> None:
        """Take what is run, and on what.

        Args:
            model: a module or an exported program, whose state dicts have the names and shapes of
                the networks; left as it was.
            data: with targets, as the model takes them: a pair (x, y), an iterable of batches, a
                text or `Data`, a part of which is held back; see `Data.of`.
            loss: "auto", "cross_entropy", "mse", or any function of what the model returns and the
                targets whose gradient can be taken.
            batch_size, norms: see the attributes.
            judged: most examples that judge.
            seed: of the draw of what is held back.

        Raises:
            InputError: the data have no targets, or a setting is none of these.
        """
        if isinstance(model, ExportedProgram):
            model = model.module()
        if not isinstance(model, nn.Module):
            raise InputError(
                f"expected the model of a task loss as a module, got {type(model).__name__}"
            )
        if batch_size < 1 or judged < 1:
            raise InputError(
                "expected batches of at least 1 example, and at least 1 that judges, got "
                f"batch_size={batch_size} and judged={judged}"
            )
        if norms not in _NORMS:
            raise InputError(f"expected norms among {_NORMS}, got {norms!r}")
        parts = Data.of(data, seed=seed)
        if not (parts.fit.have_targets and parts.held.have_targets):
            raise InputError("a task loss needs targets, and the data have none; give pairs (x, y)")
        self.fit, self.held = parts.fit, parts.held.take(judged)
        self.batch_size, self.norms, self._loss = batch_size, norms, loss_function(loss)
        self._module = unwrapped(model)
        self._device = torch.device("cpu")
        self._runner: Runner | None = None

    def __repr__(self) -> str:
        """Say what it depends on, so that searches by different losses are told apart."""
        name = getattr(self._loss, "__qualname__", type(self._loss).__name__)
        return (
            f"TaskLoss({type(self._module).__name__}, {len(self.fit)} + {len(self.held)} examples, "
            f"{name}, batch_size={self.batch_size}, norms={self.norms!r}, {self._digest[:16]})"
        )

    @cached_property
    def _digest(self) -> str:
        """The SHA-256 of the module's description and of all examples."""
        digest = hashlib.sha256(repr(self._module).encode())
        for lot in (*self.fit.lots, *self.held.lots):
            digest.update(repr(lot.form).encode())
            for leaf in tree_leaves((lot.inputs, lot.targets)):
                if isinstance(leaf, Tensor):
                    flat = leaf.detach().cpu().contiguous().flatten()
                    digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> Self:
        """Return it with its examples on a device, where it then runs."""
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        made.fit, made.held = self.fit.to(device), self.held.to(device)
        made._device, made._runner = device, None
        return made

    def check_names(self, names: Collection[str]) -> None:
        """Check that the model has tensors of these names.

        Raises:
            InputError: it has not.
        """
        with MODULES:
            unknown = sorted(set(names) - self._module.state_dict().keys())
        if unknown:
            raise InputError(
                f"the model of the task loss has no tensor {unknown[0]!r} ({len(unknown)} such "
                "names); pass the module whose state dicts the networks are"
            )

    def draw(self, random: RandomStream) -> Batch:
        """Draw a batch of the examples that are fitted, with replacement, of one shape."""
        owner = torch.zeros(1, dtype=torch.int64, device="cpu")
        lot = _lot(self.fit, int(random.below(len(self.fit), owner)))
        numbers = random.uniform(owner, self.batch_size)[0].mul(len(lot)).long()
        return lot[numbers.to(self._device)]

    def of_batch(self, state: StateDict, batch: Batch) -> Tensor:
        """Return the mean loss on a batch, whose gradients can be taken; a scalar tensor.

        Raises:
            ModelError: the forward fails; InputError: outputs and targets do not fit.
        """
        return self._run(state, batch, grad=True)

    def held_loss(self, state: StateDict) -> Tensor:
        """Return the mean loss on what is held back, a scalar tensor; see `of_batch`."""
        losses, counts = [], []
        for batch in self._judged():
            assert batch.targets is not None
            if count := weight(self._loss, batch.targets):
                with torch.no_grad():
                    losses.append(self._run(state, batch, grad=False) * count)
                counts.append(count)
        if not counts:
            raise InputError("no target that is held back counts; give other data")
        return torch.stack(losses).sum() / sum(counts)

    def _judged(self) -> Iterator[Batch]:
        """Go through what is held back; one example alone has no statistics of a batch."""
        for lot in self.held.lots:
            is_alone = self.norms == "batch" and len(lot) % self.batch_size == 1
            yield from Examples((lot,)).batches(self.batch_size + is_alone)

    def _run(self, state: StateDict, batch: Batch, *, grad: bool) -> Tensor:
        assert batch.targets is not None
        with MODULES, full_precision():
            if self._runner is None:
                self._runner = Runner(
                    *(self._module, self._device),
                    main=reads_main_output(self._loss),
                    batch_statistics=self.norms == "batch",
                )
            return self._loss(self._runner.run(state, batch.inputs, grad=grad), batch.targets)


def _lot(examples: Examples, number: int) -> Batch:
    """Return the lot in which an example lies."""
    for lot in examples.lots:
        if number < len(lot):
            return lot
        number -= len(lot)
    raise AssertionError("there is no such example")
