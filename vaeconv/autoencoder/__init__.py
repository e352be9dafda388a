"""A KL autoencoder as names and shapes. Knows no files and no arrays."""
