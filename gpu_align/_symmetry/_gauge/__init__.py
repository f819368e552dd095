"""Signs and scales of units: found in a traced graph, applied to state dicts, balanced."""
