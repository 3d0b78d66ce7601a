"""What the machine is, and the processes that share it."""
