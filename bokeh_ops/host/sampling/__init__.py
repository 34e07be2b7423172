"""Grounded sweeps in the host: K and pivots in CONDITIONING, shared noise, previews."""
