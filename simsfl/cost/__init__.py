"""What taking part costs a client: estimated from the model, and measured."""
