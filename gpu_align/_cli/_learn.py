"""`gpu-align learn`: the commands of learning on weights."""

from collections.abc import Callable

from gpu_align._cli._learn_adapt import adapt
from gpu_align._cli._learn_aligner import aligner
from gpu_align._cli._learn_classify import classify
from gpu_align._cli._learn_embed import embed
from gpu_align._cli._learn_predict import predict
from gpu_align._cli._learn_regress import regress

COMMANDS: tuple[Callable[..., None], ...] = (classify, embed, regress, adapt, predict, aligner)
"""Each with its options in a module of its own."""
