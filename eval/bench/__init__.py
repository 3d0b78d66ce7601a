"""What our code costs, beside its peers, in one run."""
