"""The program ``simsfl results-page``, which keeps what runs have reached, and writes the page about it."""
