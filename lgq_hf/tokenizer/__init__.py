"""The model that travels: every file of this folder is copied beside a pushed checkpoint."""
