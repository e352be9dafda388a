"""Containers that are read, one a module: a file or folder becomes names with lazy tensors."""
