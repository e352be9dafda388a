"""A release made from one file, step by step."""
