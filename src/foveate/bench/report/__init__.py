"""One page about a result: what is read, chosen, drawn and laid out."""
