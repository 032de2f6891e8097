"""The paper: one step of MocoSFL and of the baselines, and all that a round is made of."""
