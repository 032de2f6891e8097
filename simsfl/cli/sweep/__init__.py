"""The program ``simsfl sweep``, and what runs many settings with several seeds, also for ``simsfl table``."""
