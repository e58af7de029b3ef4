"""The methods that ship with quantkit, one module or package each."""
