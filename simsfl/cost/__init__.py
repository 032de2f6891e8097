"""The cost of participation for a client: estimated from the model, and measured."""
