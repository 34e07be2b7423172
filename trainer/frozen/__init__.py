"""The model that a recipe starts from and does not change: its network, text encoders and autoencoder, and what the
last two made, kept.
"""
