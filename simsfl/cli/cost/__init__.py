"""The program ``simsfl cost``, which estimates what taking part costs a client."""
