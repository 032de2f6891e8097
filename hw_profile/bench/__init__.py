"""The program ``pi_bench.py``: the work of a client, timed and metered."""
