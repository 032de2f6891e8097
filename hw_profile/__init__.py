"""The hardware side: the work of one client measured on a small board, and real devices that take part in a run."""
