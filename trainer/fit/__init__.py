"""``python -m trainer fit``: train a bokeh adapter on the checkpoint a user already has.

One concern per module: :mod:`.config` (settings), :mod:`.plan` (what each step trains on), :mod:`.data` and
:mod:`.cache` (pictures to latents, captions to embeddings), :mod:`.base` (the frozen model, through the host),
:mod:`.objective` and :mod:`.localise` (the loss), :mod:`.loop` (the steps), :mod:`.checkpoint`, :mod:`.samples`.
"""
