"""Numbers about pictures: tensors and arrays in, numbers out. No command line, no pickle."""
