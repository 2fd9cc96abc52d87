"""What holds for every test: hypothesis judges results, never speed, which a shared machine does not promise."""

from hypothesis import settings

settings.register_profile("baton", deadline=None)
settings.load_profile("baton")
