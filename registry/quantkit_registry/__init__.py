"""Names, records, the store of artifacts, and what any folder holds. No torch."""
