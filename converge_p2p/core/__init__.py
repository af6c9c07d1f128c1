"""The pure core: values in, values out. Imports no event loop, clock, randomness, socket or file."""
