"""What `quantkit merge` and the end of a run are made of: a plan, the rows it is judged on, the folding, the judgement."""
