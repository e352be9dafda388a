"""Proofs that an autoencoder computes what it should. Imports torch and diffusers when called."""
