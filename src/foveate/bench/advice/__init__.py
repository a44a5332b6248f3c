"""A plan for somebody's own samples and targets, by tests that may look again and again."""
