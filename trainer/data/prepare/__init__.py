"""``python -m trainer prepare``: from photographs to an annotated data set.

Two stages. The first looks at every photograph by itself, in many processes or on many machines, and keeps what it
found in small pieces (:mod:`~trainer.data.prepare.work`). The second, which is quick, brings the pieces together: it
drops duplicates, balances over K, and writes shards and report (:mod:`~trainer.data.prepare.finish`).
"""
