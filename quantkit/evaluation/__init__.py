"""Tasks, metrics that cannot be shown without their interval, coverage and floors, and the run that measures them."""
