"""Autoencoders as running torch modules, and the images that they take."""
