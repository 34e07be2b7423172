"""Small models of the host's classes, each in one file, and those that come with the extension."""
