"""Names of one state dict as names of another: what wrappers put before and between them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

# The parts of a name that DataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"}
)

# Entries that say nothing of the architecture: the count of AveragedModel, and that of batch norms,
# which old releases of torch and other frameworks do not write.
_COUNTS = ("n_averaged", "num_batches_tracked")

# Where a training loop keeps the network itself, beside averages of it.
_USUAL = ("model.", "net.", "network.")


def match_names(state: Collection[str], wanted: Collection[str]) -> dict[str, str] | None:
    """Find which names of a state dict are meant by the names of another, or of a model.

    Names match if they are the same; else if they are the same without the parts that wrappers add
    at any place (`module.`, `_orig_mod.`); else if they are so but for one prefix (`model.`) of all
    that are wanted.

    Args:
        state: the names that are there; others than those wanted may be among them.
        wanted: the names that are looked for.

    Returns:
        Wanted name -> name that is there, for all that are wanted but counts that are not there;
        None if some have no match, or two have the same, or two prefixes fit.
    """
    needed = [name for name in wanted if not is_count(name)]
    if not needed:
        return None
    if all(name in state for name in needed):
        return {name: name for name in wanted if name in state}
    bare_state, bare_wanted = _bare_names(state), _bare_names(wanted)
    if bare_state is None or bare_wanted is None:
        return None
    bare_needed = [bare_name(name) for name in needed]
    prefixes = [
        (more, less)
        for more, less in dict.fromkeys(_prefixes(bare_state, bare_needed[0]))
        if all(
            name.startswith(less) and more + name.removeprefix(less) in bare_state
            for name in bare_needed
        )
    ]
    if len(prefixes) > 1:
        prefixes = [pair for pair in prefixes if pair == ("", "") or pair[0] in _USUAL]
    if len(prefixes) != 1:
        return None
    [(more, less)] = prefixes
    found = {name: more + bare.removeprefix(less) for bare, name in bare_wanted.items()}
    return {name: bare_state[found[name]] for name in wanted if found[name] in bare_state}


@dataclass(frozen=True)
class Renamed:
    """A state dict under the names of another network.

    Attributes:
        state: the tensors under these names; those without a counterpart keep theirs.
        own: name in `state` -> the tensor's own name.
        aside: counts that the other network does not have, under their own names.
    """

    state: Mapping[str, Tensor]
    own: Mapping[str, str]
    aside: dict[str, Tensor]

    def restore(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put a state dict with the names of `state` back under its own names, counts included."""
        return {self.own.get(name, name): tensor for name, tensor in state.items()} | self.aside


def rename(state: Mapping[str, Tensor], wanted: Collection[str]) -> Renamed:
    """Call the tensors of a state dict as another network does; see `match_names`.

    Args:
        state: name -> tensor.
        wanted: the names in the other network.

    Returns:
        Without a match, the state dict as it is.
    """
    matched = match_names(state, wanted)
    if matched is None:
        return Renamed(state, {}, {})
    back = {own: name for name, own in matched.items()}
    aside = {n: t for n, t in state.items() if n not in back and is_count(n)}
    renamed = {back.get(n, n): t for n, t in state.items() if n not in aside}
    return Renamed(renamed, matched, aside)


def is_count(name: str) -> bool:
    """Tell whether a name is that of a count, which a state dict may do without."""
    return name.rpartition(".")[2] in _COUNTS


def bare_name(name: str) -> str:
    """Return a name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _bare_names(names: Collection[str]) -> dict[str, str] | None:
    """Map names without wrappers to the names; None if two of them are the same."""
    result = {bare_name(name): name for name in names}
    return result if len(result) == len(set(names)) else None


def _prefixes(state: Collection[str], name: str) -> Iterator[tuple[str, str]]:
    """Go through what a name must have put before it, or taken from it, to be in a state dict."""
    yield "", ""
    for other in state:
        if other.endswith(f".{name}"):
            yield other.removesuffix(name), ""
    for place, character in enumerate(name):
        if character == "." and name[place + 1 :] in state:
            yield "", name[: place + 1]
