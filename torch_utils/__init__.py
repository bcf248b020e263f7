"""Utilities around PyTorch that know nothing of DDNs."""
