"""All rewrites by name: what changes the weights of a block before any method."""

from q2n.rewrites.awq import AWQ
from q2n.rewrites.rewrite import Rewrite
from q2n.rewrites.smoothquant import SmoothQuant

REWRITES: dict[str, type[Rewrite]] = {kind.name: kind for kind in (AWQ, SmoothQuant)}
