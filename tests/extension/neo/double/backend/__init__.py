"""A double of Forge Neo's backend, as much of it as the extension meets: written from its contract, without its code.

It is honest about what differs from other programs: a parameter is a new object after each load and each restore;
weights are patched when a model is loaded and not when it is asked for; where memory is short W′ is made in each
forward pass; and conditions go into one call of the denoiser or into several, the last ones first.
"""
