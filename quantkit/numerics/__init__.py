"""Arithmetic that two methods or more need: tensors in, tensors out."""
