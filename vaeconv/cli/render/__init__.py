"""Results as text and as documents: a module for each command."""
