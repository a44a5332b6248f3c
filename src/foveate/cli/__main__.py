"""``python -m foveate.cli``, where the ``foveate`` script is not on the path."""

from . import main

main()
