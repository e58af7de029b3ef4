"""What `quantkit evaluate` is made of: its flags, one path scored, several in groups, what is pending, results compared."""
