"""The small world: composed scenes of known depth, and base models small enough to learn them on a CPU."""
