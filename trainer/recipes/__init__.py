"""What can be trained. A recipe says what trains, on what and with which losses; :mod:`trainer.loop` does the rest.

A new recipe is a new file or folder here with a class of :class:`~trainer.recipes.recipe.Recipe`: its learners, each
with an optimiser of its own, and the turns of a step, in which some of them are updated. A generator whose opponents
move five times first has six turns, and the loop, its checkpoints and its log know all of them.
"""
