"""The program ``simsfl report``, which writes a page and figures about runs."""
