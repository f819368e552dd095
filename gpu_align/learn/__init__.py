"""Learning on weights: layers that commute with the symmetries of the networks they look at.

    from gpu_align.learn import EquivariantLinear, WeightSpace
    space = WeightSpace(discover(model, inputs))
    layer = EquivariantLinear(space, 1, 16)
    layer(space.from_state_dicts(states))

Torch and the layers are imported when a name is first asked for.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from gpu_align.learn._adapt import Adaptation, adapt
    from gpu_align.learn._aligner import Aligner, AlignerSettings
    from gpu_align.learn._aligner_losses import AlignerLosses
    from gpu_align.learn._aligner_training import train_aligner
    from gpu_align.learn._cells import Cell, CellAxis, Features
    from gpu_align.learn._classify import Classification, classify
    from gpu_align.learn._elements import Elements
    from gpu_align.learn._embed import embed
    from gpu_align.learn._heads import InvariantHead, UnitFeatures
    from gpu_align.learn._layers import (
        EquivariantActivation,
        EquivariantBatchNorm,
        EquivariantDropout,
        EquivariantLayerNorm,
        FourierFeatures,
        ResidualBlock,
    )
    from gpu_align.learn._linear import EquivariantLinear
    from gpu_align.learn._many import Trained, train_together
    from gpu_align.learn._messages import MessageHead, MessagePassing, UnitStates
    from gpu_align.learn._nets import Siren, perceptron
    from gpu_align.learn._patterns import dimension
    from gpu_align.learn._predict import Prediction, predict
    from gpu_align.learn._recipes import ClassifierRecipe, SirenRecipe
    from gpu_align.learn._regress import regress
    from gpu_align.learn._sines import SineRecipe, Sines
    from gpu_align.learn._soft import SoftElements
    from gpu_align.learn._space import Statistics, WeightSpace
    from gpu_align.learn._study import Panel, Plot, Row, Run, Study
    from gpu_align.learn._supervised import Work
    from gpu_align.learn._training import Epoch, Training, TrainingPlan, train
    from gpu_align.learn._training_file import TrainingFile
    from gpu_align.learn._varied import VariedRecipe
    from gpu_align.learn._zoos import Zoo, load_zoo, make_zoo

_MODULES = {
    "_aligner": ("Aligner", "AlignerSettings"),
    "_aligner_losses": ("AlignerLosses",),
    "_aligner_training": ("train_aligner",),
    "_adapt": ("Adaptation", "adapt"),
    "_cells": ("Cell", "CellAxis", "Features"),
    "_classify": ("Classification", "classify"),
    "_elements": ("Elements",),
    "_embed": ("embed",),
    "_heads": ("InvariantHead", "UnitFeatures"),
    "_layers": (
        "EquivariantActivation",
        "EquivariantBatchNorm",
        "EquivariantDropout",
        "EquivariantLayerNorm",
        "FourierFeatures",
        "ResidualBlock",
    ),
    "_linear": ("EquivariantLinear",),
    "_many": ("Trained", "train_together"),
    "_messages": ("MessageHead", "MessagePassing", "UnitStates"),
    "_nets": ("Siren", "perceptron"),
    "_patterns": ("dimension",),
    "_predict": ("Prediction", "predict"),
    "_recipes": ("ClassifierRecipe", "SirenRecipe"),
    "_soft": ("SoftElements",),
    "_regress": ("regress",),
    "_sines": ("SineRecipe", "Sines"),
    "_space": ("Statistics", "WeightSpace"),
    "_study": ("Panel", "Plot", "Row", "Run", "Study"),
    "_supervised": ("Work",),
    "_training": ("Epoch", "Training", "TrainingPlan", "train"),
    "_training_file": ("TrainingFile",),
    "_varied": ("VariedRecipe",),
    "_zoos": ("Zoo", "load_zoo", "make_zoo"),
}
"""Where the names are."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Adaptation",
    "Aligner",
    "AlignerLosses",
    "AlignerSettings",
    "Cell",
    "CellAxis",
    "Classification",
    "ClassifierRecipe",
    "Elements",
    "Epoch",
    "EquivariantActivation",
    "EquivariantBatchNorm",
    "EquivariantDropout",
    "EquivariantLayerNorm",
    "EquivariantLinear",
    "Features",
    "FourierFeatures",
    "InvariantHead",
    "MessageHead",
    "MessagePassing",
    "Panel",
    "Plot",
    "Prediction",
    "ResidualBlock",
    "Row",
    "Run",
    "SineRecipe",
    "Sines",
    "Siren",
    "SirenRecipe",
    "SoftElements",
    "Statistics",
    "Study",
    "Trained",
    "Training",
    "TrainingFile",
    "TrainingPlan",
    "UnitFeatures",
    "UnitStates",
    "VariedRecipe",
    "WeightSpace",
    "Work",
    "Zoo",
    "adapt",
    "classify",
    "dimension",
    "embed",
    "load_zoo",
    "make_zoo",
    "perceptron",
    "predict",
    "regress",
    "train",
    "train_aligner",
    "train_together",
]

if not typing.TYPE_CHECKING:  # else a name that does not exist would have a type

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"gpu_align.learn.{_HOME[name]}")
        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
