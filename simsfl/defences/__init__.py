"""Defences: changes to what a client sends and learns from, so that its images cannot be reconstructed."""
