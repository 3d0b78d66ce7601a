"""What surrounds the loop: how a run begins, what it keeps, what it tells."""
