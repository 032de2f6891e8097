"""The program ``simsfl cost``: what taking part costs a client."""
