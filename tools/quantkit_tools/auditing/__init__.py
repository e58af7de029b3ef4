"""What `quantkit audit` asks beyond the result files: what names claim, and what a registry has filed."""
