"""The parts of an objective, as pure functions of tensors: advantages, the KL to the reference, reductions, the loss.

Each kind of part has one dictionary of functions by name. Its keys are the names that a stage may give. Stages are
validated without torch, so nothing here imports it: the functions only call methods of their tensors.
"""
