"""Evaluate autoencoders: reconstruct pictures, measure them, draw them side by side."""
