"""Gradients through the host's models."""
