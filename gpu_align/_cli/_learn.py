"""`gpu-align learn`: the commands of learning on weights."""

from collections.abc import Callable

import typer

from gpu_align._cli._learn_adapt import adapt
from gpu_align._cli._learn_aligner import aligner
from gpu_align._cli._learn_classify import classify
from gpu_align._cli._learn_embed import embed
from gpu_align._cli._learn_predict import predict
from gpu_align._cli._learn_regress import regress

COMMANDS: tuple[Callable[..., None], ...] = (classify, embed, regress, adapt, predict, aligner)
"""Each with its options in a module of its own."""


def make_learn(reported: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """Return the group of commands.

    Args:
        reported: wraps a command, so that its errors become messages and exit codes.
    """
    learn = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
    learn.callback()(_learn)
    for command in COMMANDS:
        learn.command()(reported(command))
    return learn


def _learn() -> None:
    """Learn from the weights of many networks, modulo their symmetries."""
