"""What smashed data tells of images, and clients that tell less: model inversion, and TAResSFL against it."""
