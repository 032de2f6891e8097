"""The machine underneath: files, memory, clocks, random numbers, signals, and words for messages."""
