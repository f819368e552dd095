"""Training an aligner on many networks of one architecture, without labels of their units."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from gpu_align._device import version
from gpu_align._errors import InputError
from gpu_align._network import TaskLoss
from gpu_align._problem import hash_tensors
from gpu_align._symmetry import PermutationSpec, StateDict, tensors_of
from gpu_align.learn._aligner import Aligner, AlignerSettings
from gpu_align.learn._aligner_losses import (
    AlignerLosses,
    distance_share,
    path_loss,
    planted_loss,
)
from gpu_align.learn._cells import Features
from gpu_align.learn._soft import SoftElements
from gpu_align.learn._space import WeightSpace
from gpu_align.learn._training import Epoch, Training, TrainingPlan, train
from gpu_align.learn._training_file import TrainingFile
from gpu_align.learn._zoos import Zoo

Networks = Zoo | StateDict | Sequence[StateDict]
"""A zoo, a stack of state dicts, or state dicts."""

PLAN = TrainingPlan(epochs=80, batch=16, rate=6e-3, decay=1e-2, clip=1.0)

_JUDGED = 100
"""Most held-back pairs that judge an epoch."""


def train_aligner(
    networks: Networks,
    spec: PermutationSpec,
    *,
    task: TaskLoss | None = None,
    plan: TrainingPlan = PLAN,
    settings: AlignerSettings | None = None,
    losses: AlignerLosses | None = None,
    held: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    file: TrainingFile | None = None,
    progress: Callable[[Epoch], None] | None = None,
    about: Mapping[str, object] | None = None,
) -> tuple[Aligner, Training]:
    """Train an aligner; nothing but the networks is needed, and for the loss on the way data.

    In each step a network is compared with itself in another order, with noise, and with another
    network drawn from all; see `AlignerLosses`. The last networks are held back: what judges an
    epoch is how close they come to each other, aligned, and what is lost halfway.

    Args:
        networks: of one architecture, in no particular order; at least 4.
        spec: their symmetries.
        task: what the networks were trained for; without it the loss on the way does not count.
        plan: how long and how fast; an example is a network.
        settings: the size of the aligner.
        losses: how much each counts.
        held: share of the networks that is held back.
        seed: of the aligner's first weights and of the training.
        device: on which to train.
        file: where the training is kept, see `train`.
        progress: called after each epoch.
        about: what else is to be written into the aligner's file, such as where the networks are
            from.

    Returns:
        The aligner with the weights of the best epoch, on the CPU, and its training.

    Raises:
        InputError: there are too few networks, or they do not fit the spec.
        CheckpointError: the file cannot be used or written.
    """
    losses = losses or AlignerLosses()
    states = networks.states if isinstance(networks, Zoo) else networks
    pairs = _Pairs(states, spec, task, losses, held, torch.device(device), settings, seed)
    known = {
        "losses": asdict(losses) if task is not None else {**asdict(losses), "path": 0.0},
        "settings": asdict(pairs.aligner.settings),
        "structure": pairs.aligner.structure.digest,
        "networks": pairs.digest(),
        "task": repr(task),
        "held": len(pairs.held[0]),
    }
    training = train(
        pairs.aligner,
        pairs.loss,
        len(pairs.fit[0]),
        plan,
        held=pairs.value,
        seed=seed,
        file=file,
        settings=known,
        progress=progress,
    )
    aligner = pairs.aligner.cpu()
    aligner.record = json.loads(
        json.dumps(
            {
                **known,
                "plan": asdict(plan),
                "seed": seed,
                "epochs": [asdict(epoch) for epoch in training.epochs],
                "best": training.best.number,
                "version": version("gpu-align"),
                **(about or {}),
            }
        )
    )
    return aligner, training


class _Pairs:
    """Pairs of networks, and what an aligner loses on them.

    Attributes:
        aligner: what is trained, on its device.
        fit, held: features of the networks that are trained on, and of the others.
    """

    def __init__(
        self,
        states: StateDict | Sequence[StateDict],
        spec: PermutationSpec,
        task: TaskLoss | None,
        losses: AlignerLosses,
        held: float,
        device: torch.device,
        settings: AlignerSettings | None,
        seed: int,
    ) -> None:
        if not 0 < held < 1:
            raise InputError(f"expected a share of held-back networks within 0 .. 1, got {held}")
        self.space, self.task, self.losses = WeightSpace(spec), task, losses
        every = self.space.from_state_dicts(states, torch.float32)
        count = len(every[0])
        kept = max(2, round(held * count))
        if count - kept < 2:
            raise InputError(
                f"expected at least 4 networks, two of them to train on, got {count} of which "
                f"{kept} are held back"
            )
        self.fit = tuple(x[: count - kept].to(device) for x in every)
        self.held = tuple(x[count - kept :].to(device) for x in every)
        if task is not None:
            task.check_names(spec.tensors)
            self.task = task.to(device)
            self._states = {n: t.to(device) for n, t in _stacked(states, spec).items()}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.aligner = Aligner(spec, self.space.statistics(self.fit), settings)
        self.aligner.to(device)
        self._spread = tuple(std.to(device) for std in self.aligner.statistics.std)

    def digest(self) -> str:
        """Return a hash of all networks."""
        parts = {"fit": self.fit, "held": self.held}
        return hash_tensors(
            [{f"{name}{n}": x for name, part in parts.items() for n, x in enumerate(part)}]
        )

    def loss(self, numbers: Tensor) -> Tensor:
        """Return the loss of some networks, each beside itself and beside another one."""
        total, weights = torch.zeros((), device=self.fit[0].device), self.losses
        target = tuple(x[numbers.to(x.device)] for x in self.fit)
        vectors = self.aligner(target)
        if weights.planted:
            total = total + weights.planted * self._planted(target, vectors)
        others = torch.randint(len(self.fit[0]), (len(numbers),), device="cpu")
        source = tuple(x[others.to(x.device)] for x in self.fit)
        scores = self.aligner.compare(vectors, self.aligner(source))
        soft = SoftElements.of_scores(self.aligner.families, scores, weights.iterations)
        aligned = soft.act(source, self.space.cells)
        if weights.distance:
            total = total + weights.distance * distance_share(target, source, aligned).mean()
        if weights.path and self.task is not None:
            like = {name: t[numbers.to(t.device)] for name, t in self._states.items()}
            seed = int(torch.randint(2**31, (), device="cpu"))
            total = total + weights.path * path_loss(
                self.space, target, aligned, like, self.task, seed
            )
        return total

    def _planted(self, target: Features, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of finding the units of networks in themselves, reordered, with noise."""
        noisy = tuple(
            x + self.losses.noise * std * torch.randn_like(x)
            for x, std in zip(target, self._spread, strict=True)
        )
        elements = self.space.random_elements(len(target[0]))
        scores = self.aligner.compare(vectors, self.aligner(self.space.act(elements, noisy)))
        truth, families = elements.inverse(), self.aligner.families
        return planted_loss(families, scores, truth, self.losses.iterations)

    def value(self) -> float:
        """Return less the distance left between held-back networks, and the loss halfway."""
        count = len(self.held[0])
        first = torch.arange(min(count, _JUDGED), device=self.held[0].device)
        target, source = (tuple(x[(first + n) % count] for x in self.held) for n in (0, 1))
        elements = self.aligner.align(target, source)
        aligned = self.space.act(elements, source)
        value = -float(distance_share(target, source, aligned).mean())
        if self.task is None:
            return value
        middle = tuple((a + b) / 2 for a, b in zip(target, aligned, strict=True))
        like = {name: tensor[len(self.fit[0]) + first] for name, tensor in self._states.items()}
        states = self.space.to_state_dicts(middle, like)
        lost = [
            float(self.task.held_loss({name: tensor[n] for name, tensor in states.items()}))
            for n in range(len(first))
        ]
        return value - sum(lost) / len(lost)


def _stacked(states: StateDict | Sequence[StateDict], spec: PermutationSpec) -> dict[str, Tensor]:
    """Return networks as a stack of state dicts."""
    if isinstance(states, Mapping):
        return dict(states)
    return {name: torch.stack(tensors_of(spec, name, states)) for name in spec.tensors}
