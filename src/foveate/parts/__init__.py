"""How methods work: pure tensor functions, shared. Nothing here knows a model, a batch or a stage."""
