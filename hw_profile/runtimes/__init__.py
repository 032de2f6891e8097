"""The runtimes that compute a client's part on a device: PyTorch, or NumPy alone."""
