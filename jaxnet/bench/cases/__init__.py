"""The cases of `jaxnet bench layers` and `jaxnet bench models`, by subject."""
