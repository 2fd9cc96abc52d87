"""Trains the two demo checkpoints, baton-tiny and baton-tiny-v2, from a seed and from text it generates itself."""
