"""Publish an autoencoder: its card, its repository, its release."""
