"""Pictures of several people in one call of a pipeline: what sweeps, the server and the studio have in common.

fitting       which pictures can be in one call, and which are in the next
halving       a batch that fails, until what fails is alone
line          those who wait, and the one painter that they wait for
from_threads  the same line for whoever waits in a thread
"""
