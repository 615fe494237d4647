"""THE BRIDGE from checkpoint to bundle: the only room that sees both `models` and `service`."""
