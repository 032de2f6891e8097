"""The programs behind ``simsfl run`` and the other commands, and what they share."""
