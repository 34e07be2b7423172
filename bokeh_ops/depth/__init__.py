"""Depth: conventions and units, edges, focus, files, estimation by a network."""
