"""Defences: what a client does to what it sends and learns, so that its images cannot be reconstructed."""
