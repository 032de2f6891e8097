"""The program ``simsfl table``, which runs tables of the paper again."""
