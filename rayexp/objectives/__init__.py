"""The parts of an objective, as pure functions of tensors: advantages, the KL to the reference, reductions, the loss.

Each kind of part has one dictionary of its functions by name; its keys are the names that a stage may give. Stages are
validated where torch is not loaded, so nothing here imports it: what is done to tensors is done by their methods.
"""
