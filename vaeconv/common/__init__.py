"""Common ground of all rooms: notes, words, options with their rules. Knows no files."""
