"""Hydra configuration: pure numbers, one noun a group."""
