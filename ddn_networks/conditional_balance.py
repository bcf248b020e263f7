"""The name of ``prefix_balance`` in earlier revisions."""

from ddn_networks.aliases import old_names

__getattr__ = old_names(__name__)
