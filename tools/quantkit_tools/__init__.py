"""The `quantkit` command: one module per verb, each a short composition of the rooms.

What a verb of many parts is made of stands in a package beside it: `evaluate` in `evaluation/`, `merge` in `merging/`,
`quantize` in `quantizing/`, `export` in `exporting/`, `audit` in `auditing/`, `registry adopt` in `adopting/`.
"""
