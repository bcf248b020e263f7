"""The name of ``network`` in earlier revisions."""

from ddn_networks.aliases import old_names

__getattr__ = old_names(__name__)
