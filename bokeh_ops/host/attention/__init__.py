"""Bokeh terms and grounding inside a model call: what it needs, and how it enters UNets and joint attention."""
