"""The program that attacks a run, and its figures."""
