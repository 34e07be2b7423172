"""``python -m trainer export``: an adapter in another file layout or precision."""
