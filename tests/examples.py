"""What tests ask of examples."""

from gpu_align._network import Examples


def targets_of(examples: Examples) -> list[int]:
    """Return the targets of all examples, in order."""
    found = []
    for batch in examples.batches(7):
        assert batch.targets is not None
        found += batch.targets.tolist()
    return found
