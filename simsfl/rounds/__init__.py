"""A round while it goes on: its steps, how far it has come, and how it is saved and taken up again."""
