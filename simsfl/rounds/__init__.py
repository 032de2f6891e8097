"""The current round: its steps, their progress, and how a run is saved and resumed."""
