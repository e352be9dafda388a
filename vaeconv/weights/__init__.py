"""What can be done to weights without torch: detect, plan, convert, prune, inspect, execute."""
