"""The program ``simsfl bench``: engines timed side by side."""
