"""Everything that a card should be asked in a few minutes: ``python -m tests.gpu`` (docs/benchmark.md)."""
