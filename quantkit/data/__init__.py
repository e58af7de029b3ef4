"""Data sets to token ids and loss masks."""
