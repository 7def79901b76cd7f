"""Fields on disk <-> tensors: spec, checks, stores, windows, simulators, Lightning data modules."""
