"""Other libraries that quantize, each in an environment of its own, on the tokens that they are handed."""
