"""The `quantkit` command: one module per verb, each a short composition of the rooms."""
