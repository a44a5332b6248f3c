"""Where reduction happens, in the order of the data: input, encoder, connector, layers, cache. ``follow`` serves all."""
