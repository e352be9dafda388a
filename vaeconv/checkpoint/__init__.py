"""Files: byte sources, containers, the restricted unpickler, writers. Knows no autoencoder."""
