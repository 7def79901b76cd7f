"""Laws and grids: tensors in, tensors out; knows nothing of learning, files or xarray."""
