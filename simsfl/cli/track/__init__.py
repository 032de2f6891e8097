"""The program that gives finished runs to trackers, and the images that trackers get."""
