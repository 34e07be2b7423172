"""What can be trained. A recipe says what trains, on what and with which losses; :mod:`trainer.loop` does the rest.

A new recipe is a new file here: a class of the base :class:`~trainer.recipes.recipe.Recipe`.
"""
