"""Which artifact is best for what, and how sure is that? Tables, files and one HTML page out of results already measured.

Nothing is measured or loaded here, and nothing of the registry is known: whoever composes a report hands over artifacts with
their records and results as plain data. A notebook over the result files would be shorter, and would rank by bare numbers.
"""
