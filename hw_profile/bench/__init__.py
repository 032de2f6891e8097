"""The benchmark of a client: its work on this machine is timed, and measured with a power meter."""
