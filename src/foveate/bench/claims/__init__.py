"""Claims of the field that can be checked on one small model, each with its rule and its judge."""
