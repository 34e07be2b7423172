"""The bokeh adapter: its network (eq. 10), its attention (eqs. 10, 11 and 15), its files, the rows of a sweep."""
