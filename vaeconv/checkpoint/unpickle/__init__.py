"""The restricted unpickler: rebuilds tensors and containers, and executes nothing."""
