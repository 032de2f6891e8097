"""The program ``simsfl export``, which writes trained networks for use without simsfl."""
