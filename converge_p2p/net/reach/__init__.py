"""Being reached: relays, what others see of this node, and neighbours on the same link."""
