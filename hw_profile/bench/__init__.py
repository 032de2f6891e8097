"""The program ``pi_bench.py``: the work of one client, timed and measured with a power meter."""
