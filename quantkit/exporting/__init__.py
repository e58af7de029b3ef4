"""Can this be had in that format, and is it then the same model? Answered before hours are spent. (`quantkit export`)

What is known stands in one table, from storage format and target to an answer: `table` for formats that quantkit reads, `rows`
with those that plugins declare. `judging` picks the answer for one artifact and adds what its sizes and grids decide;
`document` writes the table into README.md. What is carried out is `repack` (the same integer grid in another layout),
`dequantize` (the weights it computes with, dense), `convert` (GGUF by llama.cpp's converter) and `plugin` (by the plugin's own
`export_model`); everything else is answered with a route, in commands. The alternative, a converter that does whatever it is
asked, rounds weights a second time without saying so.
"""

from quantkit.exporting.answers import TARGETS, Answer, Row
from quantkit.exporting.judging import Holding, answer_for, missing
from quantkit.exporting.rows import Rows, known_rows

__all__ = ["TARGETS", "Answer", "Holding", "Row", "Rows", "answer_for", "known_rows", "missing"]
