"""Work on weights that needs no torch: detect, plan, convert, prune, inspect, execute."""
