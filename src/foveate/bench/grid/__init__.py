"""Methods, budgets and conditions on a set of questions: resumable, in parts, and what their outcomes come to."""
