"""The program ``simsfl fleet``, which tells a run in the seconds, joules and bytes of a fleet of devices."""
