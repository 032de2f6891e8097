"""The program ``simsfl table``: tables of the paper, run again."""
