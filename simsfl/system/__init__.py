"""What the rest of the library builds on: files, memory, clocks, random numbers, signals, and what programs print."""
