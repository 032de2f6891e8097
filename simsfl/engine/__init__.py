"""How fast a step runs, not what it computes."""
