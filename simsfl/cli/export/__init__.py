"""Trained backbones, and clients, as files that need no simsfl."""
