"""What `quantkit registry adopt` is made of: its flags, and the rows that a foreign adapter is looked at on."""
