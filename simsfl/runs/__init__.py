"""Everything that a run writes to disk."""
