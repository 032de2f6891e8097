"""The hardware side: a client's work measured on a small board, and real devices that take part in a run."""
