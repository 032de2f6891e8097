"""Real devices in a simulation: the server, its clients, and the messages between them."""
