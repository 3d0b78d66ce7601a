"""What a run reads: from tokens on disk to the batch of a step."""
