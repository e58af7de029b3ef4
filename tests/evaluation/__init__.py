"""Tests of quantkit.evaluation and of the verb that runs it."""
