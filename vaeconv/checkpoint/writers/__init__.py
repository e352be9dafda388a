"""Files that are written: safetensors and torch zips, whole or not at all."""
