"""The program ``simsfl bench``, which times the engines side by side."""
