"""The program ``simsfl report``: a page and figures about runs."""
