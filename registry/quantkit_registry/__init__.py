"""What is each artifact called, what is it really, and where does it come from?

Names, records, fingerprints, detection, lineage and the store. Nothing here imports torch: facts come from headers and
JSON, never from loading a model, and never from the name alone. Import from the modules; this package re-exports nothing,
so that asking for a name does not pay for detection.
"""
