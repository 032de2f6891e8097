"""Model inversion: attacks that reconstruct images from smashed data, and scores of how close they come."""
