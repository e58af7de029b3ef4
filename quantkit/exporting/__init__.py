"""Can this be had in that format, and is it then the same model? Answered before hours are spent. (`quantkit export`)

What is known stands in one table (`table`), from storage format and target to an answer; `judging` picks the answer for one
artifact and adds what its sizes and grids decide; `document` writes the table into README.md. What quantkit carries out itself
is `repack` (the same integer grid in another layout), `dequantize` (the weights it computes with, dense) and `convert` (GGUF by
llama.cpp's converter); everything else is answered with a route, in commands. The alternative, a converter that does whatever
it is asked, rounds weights a second time without saying so.
"""

from quantkit.exporting.answers import SOURCES, TARGETS, Answer
from quantkit.exporting.judging import Holding, answer_for, missing
from quantkit.exporting.table import TABLE

__all__ = ["SOURCES", "TABLE", "TARGETS", "Answer", "Holding", "answer_for", "missing"]
