"""Under which other names do people already type a setting? One table, and one function that applies it."""
