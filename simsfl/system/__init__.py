"""What the rest of the library builds on: files, memory, clocks, random numbers, signals, and text for messages."""
