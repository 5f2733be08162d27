"""Settings shared by the unit tests."""

from hypothesis import settings

# A busy machine is not a failure.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
