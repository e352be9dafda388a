"""What every room uses: notes, words, options with their descriptions and rules. Knows no files."""
