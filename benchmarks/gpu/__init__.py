"""Extraction at the size it is made for: random weights of Llama-3.1-8B's shape, on one GPU."""
