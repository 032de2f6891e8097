"""Views of a run in a terminal, and command-line flags."""
