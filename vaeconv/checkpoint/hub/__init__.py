"""Files on the Hugging Face Hub: addresses, the local cache, and reading by ranges."""
