"""A verification as JSON, text, HTML, JUnit and images."""
