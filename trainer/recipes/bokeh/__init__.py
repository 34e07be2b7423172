"""Bokeh Diffusion: an adapter on a frozen model.

:mod:`.recipe` is what the loop runs. One concern to each of the others: :mod:`.plan` (what each step trains on),
:mod:`.feed` and :mod:`.encode` (photographs and sets to latents and embeddings), :mod:`.trainee` (the model with its
adapter), :mod:`.objective` and :mod:`.localise` (the losses), :mod:`.samples`.
"""
