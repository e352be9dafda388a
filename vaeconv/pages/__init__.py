"""HTML pages that hold all they show: one frame, one style, one way of keeping names text."""
