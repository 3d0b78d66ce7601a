"""What training changed inside of models: the states of their layers, and what they tell."""
