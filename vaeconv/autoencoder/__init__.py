"""What a KL autoencoder is, as names and shapes. Knows no files and no arrays."""
