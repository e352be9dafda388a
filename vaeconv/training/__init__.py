"""Fine-tune the decoder of an autoencoder, and leave a checkpoint that the other commands read."""
