"""Settings for all tests."""

from hypothesis import settings

# The first call of a torch function can take a second, and test machines are busy: how long an example takes says nothing.
settings.register_profile("foveate", deadline=None)
settings.load_profile("foveate")
