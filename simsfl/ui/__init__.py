"""What people see in a terminal, and how they give flags."""
