"""One file per published method. The file's name is the method's name everywhere: plan, tests, docs, results."""
