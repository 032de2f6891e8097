"""How close reconstructions come to the images, and the networks that make them."""
